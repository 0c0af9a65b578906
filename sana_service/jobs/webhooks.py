"""Telling a client's server that its job ended, as fal does.

    POST {request_id, gateway_request_id, status: "OK" | "ERROR", payload, error?, payload_error?}
    X-Fal-Webhook-Request-Id, -User-Id, -Timestamp, -Signature: ED25519 over
    request id, user id, timestamp and the body's SHA-256 in hex, joined by newlines

Sent until a 2xx comes, at most `MAX_ATTEMPTS` times in about two hours; a receiver may therefore see
one end twice, with the same request id and the same body. The key is in the job store, so that all
replicas sign alike, and its public half is at `/.well-known/jwks.json`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sana_service.jobs.guard import Refused, check_url, post
from sana_service.jobs.record import Delivery, JobRecord, StoreError
from sana_service.jobs.store import JobStore
from sana_service.metrics import WEBHOOKS
from sana_service.telemetry import get_logger

logger = get_logger("webhooks")

USER_ID = "sana"
TIMEOUT_SECONDS = 15.0
MAX_ATTEMPTS = 11
# 10 s, 20 s, ... at most 20 min: the eleventh is two hours after the first.
_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS = 10.0, 1200.0
_POLL_SECONDS = 1.0
_CONCURRENT_CALLS = 4
_SECRET = "webhook-ed25519"


class Signer:
    """Signs with the key that the store keeps, made there at first use."""

    def __init__(self, store: JobStore) -> None:
        secret = store.secret(_SECRET, Ed25519PrivateKey.generate().private_bytes_raw())
        self._key = Ed25519PrivateKey.from_private_bytes(secret)

    @property
    def key_set(self) -> dict[str, Any]:
        """The public key as a JSON Web Key Set (RFC 8037)."""
        public = self._key.public_key().public_bytes_raw()
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "x": _base64url(public)}
        thumbprint = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": key["x"]}, separators=(",", ":")).encode()
        return {"keys": [{**key, "kid": _base64url(hashlib.sha256(thumbprint).digest())}]}

    def headers(self, request_id: str, body: bytes, now: float) -> dict[str, str]:
        """The four headers of fal's webhooks for a body."""
        timestamp = str(int(now))
        message = "\n".join([request_id, USER_ID, timestamp, hashlib.sha256(body).hexdigest()]).encode()
        return {
            "x-fal-webhook-request-id": request_id,
            "x-fal-webhook-user-id": USER_ID,
            "x-fal-webhook-timestamp": timestamp,
            "x-fal-webhook-signature": self._key.sign(message).hex(),
        }


def webhook_body(record: JobRecord) -> bytes:
    """What the receiver is told about a job that ended; the same bytes at each attempt."""
    ending = record.ending
    if ending is None:
        raise ValueError("the job has not ended")
    told: dict[str, Any] = {"request_id": record.job.id, "gateway_request_id": record.job.id}
    told["status"] = "OK" if ending.succeeded else "ERROR"
    if not ending.succeeded:
        told["error"] = ending.error
    try:
        told["payload"] = json.loads(ending.body)
    except ValueError as error:
        told |= {"payload": None, "payload_error": f"The payload is not JSON: {error}"}
    return json.dumps(told).encode()


def delay_seconds(attempt: int) -> float:
    """How long to wait after a failed attempt, counted from 0."""
    return min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0**attempt)


class WebhookSender:
    """Delivers what is due, a few calls at a time, so that one slow receiver does not hold up the others.

    Args:
        allowed: the operator's list, see `guard`.
    """

    def __init__(self, store: JobStore, signer: Signer, allowed: Sequence[str]) -> None:
        self._store = store
        self._signer = signer
        self._allowed = allowed

    async def run(self) -> None:
        """Deliver for ever."""
        await asyncio.gather(*(self._run() for _ in range(_CONCURRENT_CALLS)))

    async def _run(self) -> None:
        while True:
            try:
                delivery = await asyncio.to_thread(self._store.next_delivery, time.time(), TIMEOUT_SECONDS * 2)
                if delivery is not None:
                    await self.deliver(delivery)
                    continue
            except StoreError as error:
                logger.warning("webhooks wait for the job store: %s", error)
            await asyncio.sleep(_POLL_SECONDS)

    async def deliver(self, delivery: Delivery) -> None:
        """Make one attempt, and keep what came of it."""
        job_id = delivery.record.job.id
        outcome = await asyncio.to_thread(self._attempt, delivery.record)
        if outcome is None:
            WEBHOOKS.labels("delivered").inc()
            await asyncio.to_thread(self._store.delivered, job_id)
            return
        if delivery.attempt + 1 >= MAX_ATTEMPTS:
            WEBHOOKS.labels("given_up").inc()
            logger.warning("the webhook of job %s is given up after %d attempts: %s", job_id, MAX_ATTEMPTS, outcome)
            await asyncio.to_thread(self._store.delivered, job_id)
            return
        WEBHOOKS.labels("failed").inc()
        logger.info("the webhook of job %s failed and is tried again: %s", job_id, outcome)
        await asyncio.to_thread(self._store.retry_delivery, job_id, time.time() + delay_seconds(delivery.attempt))

    def _attempt(self, record: JobRecord) -> str | None:
        """None where it arrived, else why not."""
        body = webhook_body(record)
        headers = {
            "content-type": "application/json",
            "user-agent": "sana-webhook",
            **self._signer.headers(record.job.id, body, time.time()),
        }
        try:
            # The list may have changed since the job was submitted.
            target = check_url(record.job.webhook or "", self._allowed)
            status = post(target, body, headers, TIMEOUT_SECONDS)
        except (Refused, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return str(error) or type(error).__name__
        return None if 200 <= status < 300 else f"status {status}"


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
