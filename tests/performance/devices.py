"""One queue before one to eight simulated devices: `python -m tests.performance.devices`, or `make bench-devices`.

The devices take the time that an H100 takes at saturation (docs/performance.md) and compute nothing, so what is
missing from n times the throughput is the scheduler's. First its own limit, with stages that take no time; then
throughput on 1, 2, 4 and 8 devices; then the p99 latency at 80 % of the capacity on one and on eight. The last line
is JSON; the exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sana_service.engine.job import Artifact
from tests.engine.simulated import LIMITS, SimulatedEngine, SimulatedStages
from tests.pairs import job

COUNTS = (1, 2, 4, 8)
GOAL_TIMES = {4: 3.6, 8: 7.0}
GOAL_OVERHEAD_SECONDS = 0.005
LOAD = 0.8
GIVE_UP_SECONDS = 120.0


@dataclass(frozen=True)
class Pace:
    """How fast a simulated device is with one model.

    Args:
        model: "base" or "sprint".
        steps: of a job.
        step_seconds: of a batch, as many rows as `tests.engine.simulated.LIMITS` allows.
        image_seconds: of a decode.
        jobs: for each device, in a measurement of throughput.
        latency_jobs: in a measurement of latency.
    """

    model: str
    steps: int
    step_seconds: float
    image_seconds: float
    jobs: int
    latency_jobs: int

    def devices(self, count: int) -> list[SimulatedStages]:
        return [SimulatedStages(self.step_seconds, self.image_seconds) for _ in range(count)]

    def job(self) -> Any:
        return job(model=self.model, width=64, height=64, num_inference_steps=self.steps)


PACES = (Pace("base", 18, 0.052, 0.018, 48, 150), Pace("sprint", 2, 0.1, 0.032, 192, 600))
"""4.3 and 31 pictures a second, what one H100 draws."""


def draw_all(devices: list[SimulatedStages], requests: list[Any]) -> float:
    """Seconds of so many jobs; as many are asked for at once as have a seat, and 64 more, the default queue."""
    places = threading.Semaphore(len(devices) * max(LIMITS.seats.values()) + 64)
    futures: list[Future[Artifact]] = []
    with SimulatedEngine(devices) as engine:
        started = time.perf_counter()
        for request in requests:
            places.acquire()
            futures.append(engine.queue.put(request))
            futures[-1].add_done_callback(lambda _: places.release())
        _, missing = wait(futures, GIVE_UP_SECONDS)
        assert not missing
        return time.perf_counter() - started


def throughput(pace: Pace, devices: int) -> float:
    """Jobs a second of devices that are never without one."""
    requests = [pace.job() for _ in range(devices * pace.jobs)]
    return len(requests) / draw_all(pace.devices(devices), requests)


def own_limit(model: str, steps: int, jobs: int = 3000) -> dict[str, float]:
    """Jobs a second of eight devices whose stages take no time, and the process's CPU time of each."""
    requests = [job(model=model, width=64, height=64, num_inference_steps=steps) for _ in range(jobs)]
    used = time.process_time()
    elapsed = draw_all([SimulatedStages() for _ in range(8)], requests)
    return {"jobs_a_second": jobs / elapsed, "cpu_seconds_a_job": (time.process_time() - used) / jobs}


def latency(pace: Pace, devices: int, rate: float) -> tuple[float, float]:
    """p50 and p99 in seconds, of Poisson arrivals, from when each was due."""
    due, ended = np.zeros(pace.latency_jobs), np.zeros(pace.latency_jobs)
    draw = random.Random(7)
    futures: list[Future[Artifact]] = []

    def note(number: int, _: object) -> None:
        ended[number] = time.perf_counter()

    with SimulatedEngine(pace.devices(devices)) as engine:
        at = time.perf_counter()
        for number in range(pace.latency_jobs):
            at += draw.expovariate(rate)
            time.sleep(max(0.0, at - time.perf_counter()))
            due[number] = at
            futures.append(engine.queue.put(pace.job()))
            futures[-1].add_done_callback(partial(note, number))
        _, missing = wait(futures, GIVE_UP_SECONDS)
        assert not missing
    p50, p99 = np.quantile(ended - due, [0.5, 0.99])
    return float(p50), float(p99)


def measure(pace: Pace) -> tuple[dict[str, Any], list[str]]:
    """Figures of a model, and the goals that were missed."""
    missed = []
    rates = {count: throughput(pace, count) for count in COUNTS}
    for count, rate in rates.items():
        print(f"{pace.model}, {count} devices: {rate:.1f} jobs a second, {rate / rates[1]:.2f} times one", flush=True)
        if rate < GOAL_TIMES.get(count, 0.0) * rates[1]:
            missed.append(f"{pace.model}: {count} devices are {rate / rates[1]:.2f} times one")
    tails = {count: latency(pace, count, LOAD * rates[count]) for count in (1, 8)}
    for count, (p50, p99) in tails.items():
        print(f"{pace.model}, {count} devices at {LOAD:.0%} of capacity: p50 {p50:.3f} s, p99 {p99:.3f} s", flush=True)
    if tails[8][1] > tails[1][1]:
        missed.append(f"{pace.model}: p99 at {LOAD:.0%} of capacity is {tails[8][1]:.3f} s, on one {tails[1][1]:.3f} s")
    figures = {
        "jobs_a_second": {str(count): rate for count, rate in rates.items()},
        "latency_seconds": {str(count): {"p50": p50, "p99": p99} for count, (p50, p99) in tails.items()},
    }
    return figures, missed


def main() -> int:
    result: dict[str, Any] = {"cores": os.cpu_count()}
    missed = []
    for pace in PACES:
        limit = own_limit(pace.model, pace.steps)
        print(
            f"{pace.model}, stages that take no time: {limit['jobs_a_second']:.0f} jobs a second, "
            f"{limit['cpu_seconds_a_job'] * 1000:.2f} ms of CPU time each",
            flush=True,
        )
        if limit["cpu_seconds_a_job"] > GOAL_OVERHEAD_SECONDS:
            missed.append(f"{pace.model}: {limit['cpu_seconds_a_job'] * 1000:.1f} ms a job")
        figures, missing = measure(pace)
        result[pace.model] = {"own_limit": limit, **figures}
        missed += missing
    for line in missed:
        print(f"missed: {line}")
    print(json.dumps(result | {"goals_met": not missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
