"""A server whose latencies are known: parallel single-server queues, first come first served.

Speaks the service's contract. A request goes to one of `lanes` queues, drawn at random, so that each
queue of Poisson arrivals has Poisson arrivals (thinning), or in turn. It leaves its queue at
`max(arrival, when the one before it left) + service time`: lateness of the timer is no service time
and does not add up. Each request is a line in the log: seed, lane, service seconds, and how late its
answer was sent.

    python -m tests.loadtests.queue_server --port 8000 --service exponential --seconds 0.1 --lanes 40
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SPIN_SECONDS = 0.001
_SIZES = {"square_hd": (1024, 1024), "square": (512, 512), "landscape_16_9": (1024, 576)}


@lru_cache(maxsize=64)
def picture(width: int, height: int, kind: str, seed: int, flat: bool = False) -> bytes:
    """A file of smooth colours that its seed decides."""
    grid = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if flat:
        grid[:] = 128
    file = io.BytesIO()
    Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@dataclass
class QueueServer:
    """State and behaviour.

    Args:
        options: of the command line.
        free_at: when each lane will have served everything that is in it.
    """

    options: argparse.Namespace
    draw: random.Random = field(init=False)
    free_at: list[float] = field(init=False)
    stall_ends: float = 0.0
    served: int = 0
    waiting: int = 0
    log: Any = None

    def __post_init__(self) -> None:
        self.draw = random.Random(self.options.seed)
        self.free_at = [0.0] * self.options.lanes
        if self.options.log:
            self.log = Path(self.options.log).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def service_seconds(self) -> float:
        mean: float = self.options.seconds
        return self.draw.expovariate(1 / mean) if self.options.service == "exponential" else mean

    async def generate(self, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
        arrived = time.perf_counter()
        options = self.options
        if options.key and headers.get("authorization") != f"Key {options.key}":
            return 401, {}, b'{"detail": "no"}'
        request = json.loads(content)
        if "prompt" not in request:
            return 422, {}, b'{"detail": []}'
        self.served += 1
        if options.die_after and self.served > options.die_after:
            os._exit(1)
        if options.max_queue and self.waiting >= options.max_queue:
            retry = {"retry-after": "1"} if options.retry_after else {}
            return 429, {"x-fal-billable-units": "0", **retry}, b'{"detail": "full"}'
        lane = self.served % options.lanes if options.in_turn else self.draw.randrange(options.lanes)
        service = self.service_seconds()
        start = max(arrived, self.free_at[lane], self._stalled_until(arrived))
        leaves = self.free_at[lane] = start + service
        self.waiting += 1
        try:
            await until(leaves)
        finally:
            self.waiting -= 1
        late = time.perf_counter() - leaves
        if self.log:
            self.log.write(json.dumps([request["seed"], lane, service, late]) + "\n")
        timing = (
            f'queue;dur={(start - arrived) * 1000:.3f}, denoise;dur={service * 1000:.3f}, batch;desc="{lane % 3 + 1}"'
        )
        return 200, self._billing(request) | {"server-timing": timing}, self._answer(request)

    def _stalled_until(self, now: float) -> float:
        """When a stall ends that begins with a certain request, 0 without one."""
        if self.served == self.options.stall_after:
            self.stall_ends = now + self.options.stall_for
        return self.stall_ends

    @staticmethod
    def _size(request: dict[str, Any]) -> tuple[int, int]:
        size = request["image_size"]
        return (size["width"], size["height"]) if isinstance(size, dict) else _SIZES[size]

    def _billing(self, request: dict[str, Any]) -> dict[str, str]:
        width, height = self._size(request)
        return {"x-fal-billable-units": str(-(-width * height // 2**20) * request["num_images"])}

    def _answer(self, request: dict[str, Any]) -> bytes:
        width, height = self._size(request)
        seed = 7 if request["seed"] is None else request["seed"]
        kind = request["output_format"]
        # Under load a server that is wrong gives another picture than alone.
        drawn = seed + self.waiting * self.options.load_changes_pictures
        name = f"{width}x{height}-{drawn}.{'jpg' if kind == 'jpeg' else 'png'}"
        image = {
            "url": f"http://127.0.0.1:{self.options.port}/files/{name}",
            "content_type": f"image/{kind}",
            "file_name": name,
            "file_size": 0,
            "width": width,
            "height": height,
        }
        answer = {
            "images": [image] * request["num_images"],
            "seed": seed,
            "has_nsfw_concepts": [False] * request["num_images"],
            "prompt": request["prompt"],
            "timings": {},
        }
        return json.dumps(answer).encode()

    def file(self, name: str) -> bytes:
        size, _, rest = name.partition("-")
        width, height = (int(side) for side in size.split("x"))
        seed, _, extension = rest.partition(".")
        return picture(width, height, "jpeg" if extension == "jpg" else "png", int(seed), self.options.flat)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                if method == "POST" and path in {"/generate", "/sprint"}:
                    status, extra, answer = await self.generate(headers, content)
                elif path.startswith("/files/"):
                    status, extra, answer = 200, {}, await asyncio.to_thread(self.file, path.removeprefix("/files/"))
                else:
                    known = path in {"/livez", "/readyz"}
                    status, extra, answer = (200, {}, b"{}") if known else (404, {}, b'{"detail": "no"}')
                extra |= {"content-length": str(len(answer))}
                shown = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
                writer.write(f"HTTP/1.1 {status} OK\r\n{shown}\r\n".encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def until(moment: float) -> None:
    """Sleep to just before it, then yield until it is there: timers count whole milliseconds."""
    left = moment - time.perf_counter()
    if left > _SPIN_SECONDS:
        await asyncio.sleep(left - _SPIN_SECONDS)
    while time.perf_counter() < moment:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def serve(options: argparse.Namespace) -> None:
    server = QueueServer(options)
    await asyncio.sleep(options.start_seconds)
    listener = await asyncio.start_server(server.connection, "127.0.0.1", options.port, backlog=4096)
    async with listener:
        await listener.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--service", choices=["exponential", "constant"], default="constant")
    parser.add_argument("--seconds", type=float, default=0.01)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--in-turn", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--max-queue", type=int, default=0)
    parser.add_argument("--retry-after", type=int, default=1)
    parser.add_argument("--stall-after", type=int, default=0)
    parser.add_argument("--stall-for", type=float, default=0.0)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--load-changes-pictures", type=int, default=0)
    sys.setswitchinterval(0.001)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
