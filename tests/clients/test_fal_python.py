"""`fal-client` 1.0.3 from PyPI, unchanged, over TLS: only its hosts and its key are set."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import queue
import subprocess
import sys
import threading
from importlib.metadata import version
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from PIL import Image

from tests.clients.tls import SecureServer

SLOW = '{"prompt": "a", "image_size": "square", "num_inference_steps": 50, "num_images": 4, "seed": 1}'

SYNCHRONOUS = """
import fal_client, json
told, logs = [], []

def on_update(status):
    told.append(type(status).__name__)
    if isinstance(status, (fal_client.InProgress, fal_client.Completed)):
        logs.extend(line["message"] for line in status.logs or [])

ask = {"prompt": "a red circle", "image_size": "square", "seed": 7, "num_inference_steps": 3}
ran = fal_client.run("fal-ai/sana", ask)
sprinted = fal_client.run("fal-ai/sana/sprint", {"prompt": "a", "image_size": {"width": 640, "height": 320}})
subscribed = fal_client.subscribe("fal-ai/sana", ask, with_logs=True, on_queue_update=on_update, priority="low")
handle = fal_client.submit("fal-ai/sana/sprint", {"prompt": "a", "image_size": "square"}, start_timeout=60)
events = [type(event).__name__ for event in handle.iter_events(with_logs=True)]
print(json.dumps({
    "ran": ran, "sprinted": sprinted, "subscribed": subscribed, "told": told, "logs": logs,
    "events": events, "result": handle.get(), "status": type(handle.status()).__name__,
    "again": fal_client.result("fal-ai/sana/sprint", handle.request_id),
    "metrics": fal_client.status("fal-ai/sana/sprint", handle.request_id).metrics,
}))
"""

ASYNCHRONOUS = """
import asyncio, fal_client, json

async def main():
    ask = {"prompt": "a", "image_size": "square", "seed": 7, "num_inference_steps": 3}
    ran, subscribed = await asyncio.gather(
        fal_client.run_async("fal-ai/sana", ask), fal_client.subscribe_async("fal-ai/sana", ask)
    )
    handle = await fal_client.submit_async("fal-ai/sana", ask)
    events = [type(event).__name__ async for event in handle.iter_events()]
    return {"ran": ran, "subscribed": subscribed, "events": events, "result": await handle.get()}

print(json.dumps(asyncio.run(main())))
"""

CANCELLING = """
import fal_client, json, time
slow = json.loads('''SLOW''')
running = fal_client.submit("fal-ai/sana", slow)
while not isinstance(running.status(), fal_client.InProgress):
    time.sleep(0.02)
queued = fal_client.submit("fal-ai/sana", slow)
behind = fal_client.submit("fal-ai/sana/sprint", {"prompt": "a", "image_size": "square"})
positions = [queued.status().position, behind.status().position]
queued.cancel()
fal_client.cancel("fal-ai/sana", running.request_id)
outcomes = []
for handle in (running, queued):
    try:
        handle.get()
    except fal_client.FalClientHTTPError as error:
        outcomes.append([error.status_code, error.error_type, handle.status().error_type])
try:
    behind.get(), behind.cancel()
except fal_client.FalClientHTTPError as error:
    late = [error.status_code, error.response.json()]
print(json.dumps({"positions": positions, "outcomes": outcomes, "late": late}))
""".replace("SLOW", SLOW)

FAILING = """
import fal_client, json
caught = []
def attempt(call):
    try:
        call()
    except fal_client.FalClientHTTPError as error:
        caught.append([error.status_code, error.error_type, error.response.json()])
handle = fal_client.submit("fal-ai/sana", {"prompt": "a", "seed": -1})
status = [event for event in handle.iter_events()][-1]
attempt(handle.get)
attempt(lambda: fal_client.run("fal-ai/sana", {"prompt": "a", "seed": -1}))
attempt(lambda: fal_client.submit("fal-ai/flux", {"prompt": "a"}))
attempt(lambda: fal_client.result("fal-ai/sana", "0" * 32))
attempt(lambda: fal_client.submit("fal-ai/sana", {"prompt": "a"}, webhook_url="https://metadata.internal/x"))
attempt(lambda: fal_client.submit("fal-ai/sana", {"prompt": "a"}, headers={"X-Fal-Store-IO": "0"}))
attempt(lambda: fal_client.SyncClient(key="wrong").submit("fal-ai/sana", {"prompt": "a"}))
busy = [fal_client.submit("fal-ai/sana", json.loads('''SLOW''')) for _ in range(4)]
hasty = fal_client.submit("fal-ai/sana", {"prompt": "a", "image_size": "square"}, start_timeout=1.1)
attempt(hasty.get)
for one in busy:
    try:
        one.cancel()
    except fal_client.FalClientHTTPError as error:
        assert error.response.json() == {"status": "ALREADY_COMPLETED"}
print(json.dumps({"caught": caught, "error": status.error, "error_type": status.error_type}))
""".replace("SLOW", SLOW)


# Stands for the DNS entry that an operator makes.
QUEUE_NAME = """
import socket
lookup = socket.getaddrinfo

def of_queue(host, *rest, **options):
    name = host.decode() if isinstance(host, bytes) else host
    return lookup(name.removeprefix("queue."), *rest, **options)

socket.getaddrinfo = of_queue
"""


CALLED_BACK = """
import fal_client, json
url = "http://127.0.0.1:PORT/hook?customer=7"
handles = [
    fal_client.submit("fal-ai/sana/sprint", {"prompt": "a", "image_size": "square", "seed": seed}, webhook_url=url)
    for seed in (1, -1)
]
print(json.dumps({"ids": [handle.request_id for handle in handles]}))
"""


class Receiver(http.server.BaseHTTPRequestHandler):
    """A customer's server."""

    calls: ClassVar[queue.Queue[tuple[str, dict[str, str], bytes]]] = queue.Queue()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.calls.put((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def run(script: str, server: SecureServer, queue_host: str | None = None) -> dict[str, Any]:
    environment = server.environment | {
        "FAL_RUN_HOST": server.host,
        "FAL_QUEUE_RUN_HOST": queue_host or f"{server.host}/queue",
        "FAL_KEY": "test-key",
    }
    finished = subprocess.run(
        [sys.executable, "-c", QUEUE_NAME + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr + server.server.log[-3000:]
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def size_of(output: dict[str, Any], server: SecureServer) -> tuple[int, int]:
    with server.client() as client:
        url = output["images"][0]["url"].replace("https://queue.", "https://")
        return Image.open(io.BytesIO(client.get(url).content)).size


def test_the_version_is_the_one_that_is_documented():
    assert version("fal-client") == "1.0.3"


@pytest.mark.parametrize("reached_by", ["a path", "a host"])
def test_the_synchronous_client(fal_server, reached_by):
    host = {"a path": None, "a host": f"queue.{fal_server.host}"}[reached_by]
    answer = run(SYNCHRONOUS, fal_server, host)
    assert answer["subscribed"]["images"][0]["url"].startswith(f"https://{host or fal_server.host}/files/")
    assert size_of(answer["ran"], fal_server) == size_of(answer["subscribed"], fal_server) == (512, 512)
    assert size_of(answer["sprinted"], fal_server) == (640, 320)
    assert answer["ran"]["seed"] == answer["subscribed"]["seed"] == 7
    assert answer["ran"].keys() == answer["subscribed"].keys()
    assert answer["told"][-1] == answer["events"][-1] == answer["status"] == "Completed"
    assert "denoise 3/3" in answer["logs"]
    assert answer["result"] == answer["again"]
    assert 0 < answer["metrics"]["inference_time"] < 60


def test_the_asynchronous_client(fal_server):
    answer = run(ASYNCHRONOUS, fal_server)
    assert {answer[name]["seed"] for name in ("ran", "subscribed", "result")} == {7}
    assert answer["events"][-1] == "Completed"


def test_cancelling_what_runs_and_what_waits(fal_server):
    answer = run(CANCELLING, fal_server)
    assert answer["positions"] == [0, 1]
    assert answer["outcomes"] == [[499, "client_cancelled", "client_cancelled"]] * 2
    assert answer["late"] == [400, {"status": "ALREADY_COMPLETED"}]


def test_errors_surface_where_the_client_looks_for_them(fal_server):
    answer = run(FAILING, fal_server)
    invalid, ran, other_app, unknown, webhook, store, key, hasty = answer["caught"]
    assert invalid == [422, None, ran[2]]
    assert (ran[0], ran[2]["detail"][0]["loc"]) == (422, ["body", "seed"])
    assert (answer["error"], answer["error_type"]) == ("Unprocessable Entity", "bad_request")
    assert other_app[0] == unknown[0] == 404
    assert (webhook[0], webhook[2]["detail"]) == (400, "The webhook's host is not allowed on this service.")
    assert store[0] == 400
    assert key[0] == 401
    assert hasty[:2] == [504, "request_timeout"]


def test_webhooks_reach_the_allowed_host_and_are_signed(fal_server, webhook_port):
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", webhook_port), Receiver)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        ids = run(CALLED_BACK.replace("PORT", str(webhook_port)), fal_server)["ids"]
        calls = [Receiver.calls.get(timeout=30) for _ in ids]
    finally:
        listener.shutdown()
        listener.server_close()
    with fal_server.client() as http_client:
        [key] = http_client.get("/.well-known/jwks.json").json()["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    told = {}
    for path, headers, body in calls:
        assert path == "/hook?customer=7"
        signed = [headers[f"x-fal-webhook-{part}"] for part in ("request-id", "user-id", "timestamp")]
        signed.append(hashlib.sha256(body).hexdigest())
        public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), "\n".join(signed).encode())
        told[headers["x-fal-webhook-request-id"]] = json.loads(body)
    good, bad = (told[job_id] for job_id in ids)
    assert (good["status"], good["payload"]["seed"]) == ("OK", 1)
    assert (bad["status"], bad["payload"]["detail"][0]["loc"]) == ("ERROR", ["body", "seed"])
