"""Clients of one life of a server: some draw, some leave, some attack; each answer is checked and written down."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.chaos.accounts import read_running
from tests.chaos.attack import attack

QUEUE = "/queue/fal-ai/sana/sprint"
CLIENTS = 6
SIZES = ("square", "square_hd", {"width": 640, "height": 360})
JOB_FAULTS = ("oom-text", "oom-denoise", "oom-decode", "short-denoise", "short-decode", "kernel-denoise", "nan")
SWITCHES = ("disk-full", "disk-slow", "clock")
EXPECTED = {200: "completed", 429: "refused", 504: "expired"}
MAY_FAIL = {500: ("failed",), 503: ("failed", "refused")}


@dataclass
class Ledger:
    """What the clients saw, by request id: status and units of the answer, or that there was none."""

    answered: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    pictures: int = 0
    broken: list[str] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    def outcomes(self) -> Counter[str]:
        seen = Counter(str(status) for status, _ in self.answered.values())
        return seen + Counter({"left": len(self.left), "lost": len(self.lost)})


class Crowd:
    """Clients of one life.

    Args:
        url: the server's.
        switches: the folder of its faults.
        number: of the life.
        seed: of everything random.
    """

    def __init__(self, url: str, switches: Path, number: int, seed: int) -> None:
        self.url = url
        self.switches = switches
        self.number = number
        self.dice = random.Random(seed)
        self.ledger = Ledger()
        self.jobs: list[str] = []
        self.stopping = asyncio.Event()
        self.again = 0
        self.at_the_end: list[str] = []
        self._requests = 0

    async def run(self, seconds: float) -> None:
        """The crowd at work; requests under way are seen to their end. May be called again."""
        self.stopping = asyncio.Event()
        async with self._http() as http:
            # What a killed server lost is sent again, as a balancer would.
            again, self.again = self.again, 0
            await asyncio.gather(*(self.draw(http, plain=True) for _ in range(again)))
            tasks = [asyncio.create_task(self._client(http)) for _ in range(CLIENTS)]
            others = (self._attackers(), self._faults(), self._bursts(http), self._probes(http), self._queue(http))
            tasks += [asyncio.create_task(each) for each in others]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), seconds)
            self.stopping.set()
            for task in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(task, BaseException):
                    self.ledger.broken.append(f"a client broke: {task!r}")

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=64))

    async def drained_midway(self, server: subprocess.Popen[bytes]) -> None:
        """Send a few, and SIGTERM once they are under way."""
        before = set(self.ledger.answered)
        async with self._http() as http:
            drawing = [asyncio.create_task(self.draw(http, plain=True)) for _ in range(3)]
            while read_running(await http.get("/metrics")) == 0 and not all(task.done() for task in drawing):
                pass
            server.send_signal(signal.SIGTERM)
            await asyncio.gather(*drawing)
        self.at_the_end = sorted(set(self.ledger.answered) - before)

    async def _client(self, http: httpx.AsyncClient) -> None:
        while not self.stopping.is_set():
            await self.draw(http)
            await asyncio.sleep(self.dice.random() * 0.3)

    async def _bursts(self, http: httpx.AsyncClient) -> None:
        """Far more than fits, now and then."""
        wait = 0.5
        while not await self._pause(wait):
            await asyncio.gather(*(self.draw(http, plain=True) for _ in range(24)))
            wait = 4 + 6 * self.dice.random()

    async def draw(self, http: httpx.AsyncClient, *, plain: bool = False) -> None:
        """One request that is valid, and what became of it."""
        self._requests += 1
        identifier = f"life{self.number}-{self._requests}"
        dice = self.dice
        prompt = f"fault:{dice.choice(JOB_FAULTS)}" if not plain and dice.random() < 0.15 else "a red circle"
        body = {
            "prompt": prompt,
            "image_size": dice.choice(SIZES),
            "num_inference_steps": dice.choice((1, 2, 4)),
            "num_images": dice.choice((1, 1, 1, 2)),
            "output_format": dice.choice(("jpeg", "png")),
        }
        patience = 0.05 + 0.4 * dice.random() if not plain and dice.random() < 0.1 else 60.0
        route = dice.choice(("/generate", "/sprint"))
        ledger = self.ledger
        try:
            answer = await http.post(route, json=body, headers={"x-request-id": identifier}, timeout=patience)
        except httpx.ConnectError:
            self.stopping.set()  # nobody listens any more; this one was never sent
            return
        except httpx.TimeoutException:
            ledger.left.add(identifier)
            return
        except httpx.TransportError:
            ledger.lost.add(identifier)
            self.stopping.set()
            return
        units = int(answer.headers["x-fal-billable-units"])
        ledger.answered[identifier] = answer.status_code, units
        self._check_answer(identifier, prompt, body, answer)
        if answer.status_code == 200 and dice.random() < 0.1:
            await self._look_at(http, identifier, answer.json()["images"][0]["url"])

    async def _look_at(self, http: httpx.AsyncClient, identifier: str, url: str) -> None:
        with contextlib.suppress(httpx.TransportError):
            file = await http.get(url)
            if file.status_code != 200 or np.asarray(Image.open(io.BytesIO(file.content))).std() < 5:
                self.ledger.broken.append(f"{identifier}: no picture at {url}")
            self.ledger.pictures += 1

    def _check_answer(self, identifier: str, prompt: str, body: dict[str, Any], answer: httpx.Response) -> None:
        ledger, units = self.ledger, int(answer.headers["x-fal-billable-units"])
        if answer.headers["x-request-id"] != identifier:
            ledger.broken.append(f"{identifier}: another id came back")
        if answer.status_code == 200:
            if len(answer.json()["images"]) != body["num_images"] or "oom-" in prompt or "nan" in prompt:
                ledger.broken.append(f"{identifier}: a success that is none ({prompt})")
            return
        if units or set(answer.json()) != {"detail"}:
            ledger.broken.append(f"{identifier}: an error with a bill or of another shape")
        if answer.status_code in {429, 503} and int(answer.headers.get("retry-after", "0")) < 1:
            ledger.broken.append(f"{identifier}: {answer.status_code} without Retry-After")
        if answer.status_code == 500 and "kernel-" not in prompt and "nan" not in prompt:
            ledger.broken.append(f"{identifier}: 500 without a cause ({prompt})")
        if answer.status_code not in {429, 500, 503, 504}:
            ledger.broken.append(f"{identifier}: {answer.status_code}")

    async def _attackers(self) -> None:
        rounds = 0
        while not await self._pause(1.0):
            rounds += 1
            answers = await attack(self.url, 60, seed=self.number * 1000 + rounds)
            strange = {status for status in answers if status.startswith("5")} | ({"silent"} & set(answers))
            if strange:
                self.ledger.broken.append(f"a bad request was answered {strange}")

    async def _faults(self) -> None:
        while not await self._pause(2 + 2 * self.dice.random()):
            name = self.dice.choice(SWITCHES)
            (self.switches / name).write_text(str(self.dice.choice((-3600.0, 30.0))) if name == "clock" else "")
            await self._pause(1.0)
            (self.switches / name).unlink(missing_ok=True)

    async def _probes(self, http: httpx.AsyncClient) -> None:
        while not await self._pause(0.1):
            started = time.perf_counter()
            try:
                ready = await http.get("/readyz")
                self.ledger.probes.append(time.perf_counter() - started)
                alive = await http.get("/livez")
            except httpx.TransportError:
                return
            if ready.status_code != 200 or alive.status_code != 200:
                self.ledger.broken.append(f"/readyz {ready.status_code}, /livez {alive.status_code} under load")

    async def _queue(self, http: httpx.AsyncClient) -> None:
        while not await self._pause(1.5):
            with contextlib.suppress(httpx.TransportError):
                answer = await http.post(QUEUE, json={"prompt": "a red circle", "image_size": "square"})
                if answer.status_code == 200:
                    self.jobs.append(answer.json()["request_id"])

    async def _pause(self, seconds: float) -> bool:
        """Whether the crowd goes home meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return self.stopping.is_set()
