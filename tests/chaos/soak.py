"""A long time at four fifths of the capacity: do memory, open files and latency stay?

    python -m tests.chaos.soak --seconds 1800 --warm-up-seconds 900 --out results/soak.json

The warm-up is the same load, of which nothing is judged: memory reaches its height when requests first meet in every
stage, which takes many minutes, and a leak goes on after it. Slopes are least squares over the least that the worker
held in each minute, since connections come and go with the queue; the first tenth is left out. The p99 of the last
third is set against the first's. Arrivals are evenly spaced: with Poisson's the p99 at this load is that of the
longest queue, and tells which minutes of the machine were slow. The exit code is 1 where memory grows by more than 20
MB an hour, handles by more than 4, or the last third is more than 10 % slower; over a few minutes the slopes are
noise, and it is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests import services
from tests.chaos.load import Target, capacity, open_loop, percentile
from tests.chaos.processes import holdings, worker_of

PATH = "/sprint"
BODY = {"prompt": "a red circle on a blue background", "image_size": "square"}
LOAD_SHARE = 0.8
RSS_MB_PER_HOUR, HANDLES_PER_HOUR, SLOWER_SHARE = 20.0, 4.0, 1.1
MEANINGFUL_SECONDS = 1500.0


async def watch(process: psutil.Process, until: asyncio.Event) -> list[tuple[float, float, int, int]]:
    """Seconds, megabytes, handles and threads, each second."""
    seen = []
    started = time.monotonic()
    while not until.is_set():
        held = holdings(process)
        seen.append((time.monotonic() - started, held.rss_mb, held.handles, held.threads))
        await asyncio.sleep(1.0)
    return seen


def lowest(held: np.ndarray) -> np.ndarray:
    """The least of each column in each minute; its time is the minute's first."""
    minutes = (held[:, 0] // 60).astype(int)
    return np.array([held[minutes == minute].min(axis=0) for minute in np.unique(minutes)])


def per_hour(seconds: np.ndarray, values: np.ndarray) -> float:
    """The slope of values over time."""
    return float(np.polyfit(seconds / 3600, values, 1)[0])


async def soak(server: services.Server, warm_up: float, seconds: float) -> dict[str, Any]:
    """Load at a rate, and what it did to the server after its warm-up."""
    target, ended = Target(server.url), asyncio.Event()
    for _ in range(5):
        await target.post(PATH, BODY)
    most = await capacity(target, PATH, BODY, 15.0)
    rate = most * LOAD_SHARE
    worker = worker_of(server.process.pid)
    before = holdings(worker).rss_mb
    await open_loop(target, PATH, BODY, [number / rate for number in range(int(warm_up * rate))])
    watching = asyncio.create_task(watch(worker, ended))
    third = seconds / 3
    samples = await open_loop(target, PATH, BODY, [number / rate for number in range(int(seconds * rate))])
    ended.set()
    held = np.array(await watching)
    held = lowest(held[len(held) // 10 :])
    first = [one.seconds for one in samples if one.due < third]
    last = [one.seconds for one in samples if one.due >= 2 * third]
    return {
        "warm_up_seconds": warm_up,
        "seconds": seconds,
        "capacity_per_second": round(most, 3),
        "rate_per_second": round(rate, 3),
        "requests": len(samples),
        "not_200": sum(one.status != 200 for one in samples),
        "rss_mb_before_warm_up": round(before, 1),
        "rss_mb": [round(float(held[0, 1]), 1), round(float(held[-1, 1]), 1)],
        "rss_mb_by_minute": [round(float(rss)) for rss in held[:, 1]],
        "rss_mb_per_hour": round(per_hour(held[:, 0], held[:, 1]), 2),
        "handles": [int(held[0, 2]), int(held[-1, 2])],
        "handles_per_hour": round(per_hour(held[:, 0], held[:, 2]), 2),
        "threads": [int(held[0, 3]), int(held[-1, 3])],
        "median_seconds_of_thirds": [
            round(percentile([one.seconds for one in samples if start <= one.due < start + third], 0.5), 4)
            for start in (0.0, third, 2 * third)
        ],
        "p99_seconds_first_third": round(percentile(first, 0.99), 4),
        "p99_seconds_last_third": round(percentile(last, 0.99), 4),
    }


def flat(found: dict[str, Any]) -> bool:
    """Whether nothing grew."""
    return bool(
        found["rss_mb_per_hour"] <= RSS_MB_PER_HOUR
        and found["handles_per_hour"] <= HANDLES_PER_HOUR
        and found["p99_seconds_last_third"] <= SLOWER_SHARE * found["p99_seconds_first_third"]
    )


def main() -> int:
    """Start a server on the bundled model, soak it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--warm-up-seconds", type=float, default=900.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Files are deleted while it runs, as they are in service.
        variables = {"SANA_MODELS": "bundled", "SANA_FILE_TTL_SECONDS": "60"}
        with services.server(Path(folder), variables) as server:
            found = asyncio.run(soak(server, options.warm_up_seconds, options.seconds))
    found["flat"] = flat(found) if options.seconds >= MEANINGFUL_SECONDS else None
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if found["flat"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
