"""Open-loop requests: each is sent when it is due, carries a key, and is repeated with it until it is answered."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from tests.replicas.farm import KEY

ATTEMPTS = 8
PATIENCE_SECONDS = 90.0
STEPS = 10
_PAUSE_SECONDS = 0.5
_REPEATED = {502, 503, 504}


@dataclass
class Record:
    """One request and all of its attempts.

    Args:
        key: its idempotency key.
        route: endpoint.
        body: JSON.
        attempts: what became of each: a status, or the name of a transport error.
        answer: of the last, when it was 200.
        units: of the header of that answer.
    """

    key: str
    route: str
    body: dict[str, Any]
    sent: float
    attempts: list[str] = field(default_factory=list)
    answer: dict[str, Any] | None = None
    units: int = 0
    seconds: float = 0.0

    @property
    def names(self) -> list[str]:
        return [] if self.answer is None else [image["file_name"] for image in self.answer["images"]]


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Key {KEY}", "Idempotency-Key": key}


class Load:
    """Sends until it is left; the records are then complete.

    Args:
        url: of the balancer.
        rate_per_second: of the Poisson arrivals.
    """

    def __init__(self, url: str, rate_per_second: float, seed: int = 0) -> None:
        self._url = url
        self._rate = rate_per_second
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(128)
        self._futures: list[Future[None]] = []
        self._sender = threading.Thread(target=self._send)
        self.records: list[Record] = []

    def __enter__(self) -> Load:
        self._sender.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._sender.join()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._futures:
                future.result()

    def _send(self) -> None:
        due = time.monotonic()
        while True:
            due += self._random.expovariate(self._rate)
            if self._over.wait(max(0.0, due - time.monotonic())):
                return
            number = len(self.records)
            route = ("/sprint", "/generate")[number % 2]
            body = {"prompt": f"picture {number}", "image_size": "square", "num_inference_steps": STEPS}
            record = Record(uuid.uuid4().hex, route, body, time.time())
            self.records.append(record)
            self._futures.append(self._pool.submit(self._ask, record))

    def _ask(self, record: Record) -> None:
        started = time.monotonic()
        for _ in range(ATTEMPTS):
            try:
                answer = httpx.post(
                    self._url + record.route,
                    json=record.body,
                    headers=headers(record.key),
                    timeout=PATIENCE_SECONDS,
                    trust_env=False,
                )
            except httpx.TransportError as error:
                record.attempts.append(type(error).__name__)
            else:
                record.attempts.append(str(answer.status_code))
                if answer.status_code == 200:
                    record.answer = answer.json()
                    record.units = int(answer.headers["x-fal-billable-units"])
                if answer.status_code not in _REPEATED:
                    break
            self._over.wait(_PAUSE_SECONDS)
        record.seconds = time.monotonic() - started
