"""Requests when they are due, and as fast as they are answered; small, so that it can share two cores with the server.

Unlike `loadtests` it draws no report and knows no scenarios.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

GIVE_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """One request.

    Args:
        due: when it should start, seconds since the load began.
        seconds: from then to the end of its answer.
        status: of the answer; 0 where there was none.
    """

    due: float
    seconds: float
    status: int

    @property
    def done(self) -> float:
        return self.due + self.seconds


class Target:
    """A server's address, and requests to it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)

    async def get(self, path: str) -> int:
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())

    async def post(self, path: str, body: dict[str, Any]) -> int:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
        return await self._ask(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)

    async def _ask(self, request: bytes) -> int:
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    writer.write(request)
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return 0
        return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


async def capacity(target: Target, path: str, body: dict[str, Any], seconds: float, clients: int = 4) -> float:
    """Answers a second where there is always somebody waiting."""
    started = time.perf_counter()
    answered = 0

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            served = await target.post(path, body) == 200
            answered += served
            if not served:
                await asyncio.sleep(0.25)  # refusals are not to cost the server more than pictures do

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered / (time.perf_counter() - started)


def poisson(rates: Sequence[tuple[float, float]], seed: int = 0) -> list[float]:
    """When requests are due, in seconds.

    Args:
        rates: requests a second, and for how many seconds, one after the other.
    """
    dice, due, end = random.Random(seed), 0.0, 0.0
    dues: list[float] = []
    for rate, seconds in rates:
        due, end = end, end + seconds
        while (due := due + dice.expovariate(rate)) < end:
            dues.append(due)
    return dues


async def open_loop(target: Target, path: str, body: dict[str, Any], dues: Sequence[float]) -> list[Sample]:
    """Requests that wait for nobody, each when it is due."""
    started = time.perf_counter()

    async def one(due: float) -> Sample:
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        status = await target.post(path, body)
        return Sample(due, time.perf_counter() - started - due, status)

    return list(await asyncio.gather(*map(one, dues)))


async def probe(
    target: Target, paths: Sequence[str], every_seconds: float, until: asyncio.Event, seldom: Sequence[str] = ()
) -> dict[str, Any]:
    """Ask now and then; latencies by path, and the statuses that were not 200.

    Args:
        seldom: asked once in twenty rounds, as a collector of metrics does: they cost the server more.
    """
    latencies: dict[str, list[float]] = {path: [] for path in (*paths, *seldom)}
    odd: list[int] = []
    rounds = 0
    while not until.is_set():
        rounds += 1
        for path in (*paths, *(seldom if rounds % 20 == 1 else ())):
            started = time.perf_counter()
            status = await target.get(path)
            latencies[path].append(time.perf_counter() - started)
            if status != 200:
                odd.append(status)
        await asyncio.sleep(every_seconds)
    return {"latencies": latencies, "odd": odd}


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
