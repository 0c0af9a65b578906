"""Webhooks: the signature as fal's documentation checks it, retries, and what is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sana_service.jobs.record import Ending, Job, JobRecord, new_job_id
from sana_service.jobs.sqlite import SqliteStore
from sana_service.jobs.webhooks import MAX_ATTEMPTS, Signer, WebhookSender, delay_seconds, webhook_body

OK = Ending(200, {}, b'{"seed": 7}')
BAD = Ending(422, {}, b'{"detail": []}', error="Unprocessable Entity", error_type="bad_request")


class Server(http.server.HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.hits: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []


class Receiver(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.hits.append((dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "jobs.db")
    yield store
    store.close()


def ended(store: SqliteStore, url: str, ending: Ending = OK) -> str:
    job = Job(new_job_id(), "base", "{}", "http://sana.test", time.time(), webhook=url)
    store.add(job, 10, ending, expires_at=time.time() + 60)
    return job.id


def attempt(store: SqliteStore, sender: WebhookSender, now: float) -> bool:
    delivery = store.next_delivery(now, 30.0)
    if delivery is not None:
        asyncio.run(sender.deliver(delivery))
    return delivery is not None


def test_the_signature_holds_by_fals_recipe(receiver, store):
    url = f"http://127.0.0.1:{receiver.server_port}"
    signer = Signer(store)
    job_id = ended(store, f"{url}/hook?x=1")
    assert attempt(store, WebhookSender(store, signer, (url,)), time.time())
    [(headers, body)] = receiver.hits
    headers = {name.lower(): value for name, value in headers.items()}
    assert json.loads(body) == {
        "request_id": job_id, "gateway_request_id": job_id, "status": "OK", "payload": {"seed": 7},
    }  # fmt: skip
    # docs.fal.ai: request id, user id, timestamp, hex SHA-256 of the body, joined by newlines
    signed = "\n".join(
        [
            headers["x-fal-webhook-request-id"],
            headers["x-fal-webhook-user-id"],
            headers["x-fal-webhook-timestamp"],
            hashlib.sha256(body).hexdigest(),
        ]
    )
    [key] = signer.key_set["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), signed.encode())
    assert abs(int(headers["x-fal-webhook-timestamp"]) - time.time()) < 60
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")


def test_what_fails_is_tried_again_with_the_same_body_until_it_arrives(receiver, store):
    url = f"http://127.0.0.1:{receiver.server_port}"
    receiver.statuses.extend([500, 404, 301])
    sender = WebhookSender(store, Signer(store), (url,))
    ended(store, url)
    now = time.time()
    for later in (0, 15, 40, 100):
        assert attempt(store, sender, now + later)
        assert not attempt(store, sender, now + later)
    assert not attempt(store, sender, now + 86_400)
    assert len({body for _, body in receiver.hits}) == 1
    assert len(receiver.hits) == 4


def test_a_receiver_that_never_answers_is_given_up(receiver, store):
    url = f"http://127.0.0.1:{receiver.server_port}"
    receiver.statuses.extend([503] * 50)
    sender = WebhookSender(store, Signer(store), (url,))
    ended(store, url)
    attempts = 0
    while attempt(store, sender, time.time() + 1e6):
        attempts += 1
    assert attempts == MAX_ATTEMPTS == len(receiver.hits)
    assert 3600 < sum(delay_seconds(number) for number in range(MAX_ATTEMPTS - 1)) < 3 * 3600


def test_a_host_that_is_no_longer_allowed_is_not_called(receiver, store):
    ended(store, f"http://127.0.0.1:{receiver.server_port}")
    assert attempt(store, WebhookSender(store, Signer(store), ("hooks.example.com",)), time.time())
    assert receiver.hits == []


def test_errors_are_told_with_their_payload():
    record = JobRecord(Job("1" * 32, "base", "{}", "", 0.0), "done", ending=BAD)
    told = json.loads(webhook_body(record))
    assert (told["status"], told["error"], told["payload"]) == ("ERROR", "Unprocessable Entity", {"detail": []})
    broken = JobRecord(record.job, "done", ending=Ending(200, {}, b"\xff"))
    assert json.loads(webhook_body(broken))["payload_error"].startswith("The payload is not JSON")


def test_replicas_sign_with_one_key(store):
    assert Signer(store).key_set == Signer(store).key_set
