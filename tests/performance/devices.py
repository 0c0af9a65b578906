"""One queue before one to eight simulated devices: `python -m tests.performance.devices`, or `make bench-devices`.

The devices have a process each, take the time that an H100 takes at saturation (docs/performance.md) and compute
nothing, so what is missing from n times the throughput is the scheduler's. First its own limit, with stages that take
no time; then throughput on 1, 2, 4 and 8 devices; then the p99 latency at 80 % of the capacity on one and on eight. The
last line is JSON; the exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sana_service.engine.engine import Engine
from sana_service.engine.job import Artifact, Job
from sana_service.engine.processes.device import DeviceSpec, start_devices
from tests.engine.devices import SimulatedDevice
from tests.engine.simulated import LIMITS
from tests.pairs import job
from tests.performance.drawing import PACES

COUNTS = (1, 2, 4, 8)
GOAL_TIMES = {4: 3.6, 8: 7.0}
GOAL_OVERHEAD_SECONDS = 0.005
SHARE = 0.8
GIVE_UP_SECONDS = 120.0


@dataclass(frozen=True)
class Load:
    """What is asked of the devices with one model.

    Args:
        model: "base" or "sprint".
        steps: of a job.
        jobs: for each device, in a measurement of throughput.
        latency_jobs: in a measurement of latency.
    """

    model: str
    steps: int
    jobs: int
    latency_jobs: int

    def job(self) -> Any:
        return job(model=self.model, width=64, height=64, num_inference_steps=self.steps)


LOADS = (Load("base", 18, 48, 150), Load("sprint", 2, 192, 600))


@contextmanager
def engine_of(device: DeviceSpec, count: int) -> Iterator[Engine]:
    """An engine before so many devices, a process each."""
    engine = Engine(start_devices({f"device:{number}": device for number in range(count)}), max_queue=10_000)
    engine.start()
    try:
        yield engine
    finally:
        assert engine.stop(GIVE_UP_SECONDS)


def draw_all(submit: Callable[[Job], Future[Artifact]], devices: int, requests: Sequence[Job]) -> float:
    """Seconds of so many jobs; as many are asked for at once as have a seat, and 64 more, the default queue."""
    places = threading.Semaphore(devices * max(LIMITS.seats.values()) + 64)
    futures: list[Future[Artifact]] = []
    started = time.perf_counter()
    for request in requests:
        places.acquire()
        futures.append(submit(request))
        futures[-1].add_done_callback(lambda _: places.release())
    _, missing = wait(futures, GIVE_UP_SECONDS)
    assert not missing
    return time.perf_counter() - started


def throughput(engine: Engine, load: Load) -> float:
    """Jobs a second of devices that are never without one, once each has had one."""
    wait([engine.submit(load.job()) for _ in range(engine.devices)], GIVE_UP_SECONDS)
    requests = [load.job() for _ in range(engine.devices * load.jobs)]
    return len(requests) / draw_all(engine.submit, engine.devices, requests)


def own_limit(engine: Engine, load: Load, jobs: int = 3000) -> dict[str, float]:
    """Jobs a second of devices whose stages take no time, and the CPU time of the queue's process for each."""
    requests = [load.job() for _ in range(jobs)]
    used = time.process_time()
    elapsed = draw_all(engine.submit, engine.devices, requests)
    return {"jobs_a_second": jobs / elapsed, "cpu_seconds_a_job": (time.process_time() - used) / jobs}


def latency(engine: Engine, load: Load, rate: float) -> tuple[float, float]:
    """p50 and p99 in seconds, of Poisson arrivals, from when each was due."""
    due, ended = np.zeros(load.latency_jobs), np.zeros(load.latency_jobs)
    draw = random.Random(7)
    futures: list[Future[Artifact]] = []

    def note(number: int, _: object) -> None:
        ended[number] = time.perf_counter()

    at = time.perf_counter()
    for number in range(load.latency_jobs):
        at += draw.expovariate(rate)
        time.sleep(max(0.0, at - time.perf_counter()))
        due[number] = at
        futures.append(engine.submit(load.job()))
        futures[-1].add_done_callback(partial(note, number))
    _, missing = wait(futures, GIVE_UP_SECONDS)
    assert not missing
    p50, p99 = np.quantile(ended - due, [0.5, 0.99])
    return float(p50), float(p99)


def measure() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures by model, and the goals that were missed."""
    figures: dict[str, dict[str, Any]] = {
        load.model: {"own_limit": {}, "jobs_a_second": {}, "latency_seconds": {}} for load in LOADS
    }
    with engine_of(SimulatedDevice(), max(COUNTS)) as engine:
        for load in LOADS:
            limit = figures[load.model]["own_limit"] = own_limit(engine, load)
            rate, milliseconds = limit["jobs_a_second"], limit["cpu_seconds_a_job"] * 1000
            figures_each = f"{rate:.0f} jobs a second, {milliseconds:.2f} ms of CPU time each"
            print(f"{load.model}, stages that take no time: {figures_each}", flush=True)
    for count in COUNTS:
        with engine_of(SimulatedDevice(paces=PACES), count) as engine:
            for load in LOADS:
                found = figures[load.model]
                rate = found["jobs_a_second"][count] = throughput(engine, load)
                times = rate / found["jobs_a_second"][1]
                print(f"{load.model}, {count} devices: {rate:.1f} jobs a second, {times:.2f} times one", flush=True)
                if count in {1, max(COUNTS)}:
                    p50, p99 = found["latency_seconds"][count] = latency(engine, load, SHARE * rate)
                    print(f"{load.model}, {count} devices at {SHARE:.0%}: p50 {p50:.3f} s, p99 {p99:.3f} s", flush=True)
    return figures, [line for model, found in figures.items() for line in missed(model, found)]


def missed(model: str, found: dict[str, Any]) -> Iterator[str]:
    """Goals that a model's figures miss."""
    seconds = found["own_limit"]["cpu_seconds_a_job"]
    if seconds > GOAL_OVERHEAD_SECONDS:
        yield f"{model}: {seconds * 1000:.1f} ms a job"
    for count, goal in GOAL_TIMES.items():
        times = found["jobs_a_second"][count] / found["jobs_a_second"][1]
        if times < goal:
            yield f"{model}: {count} devices are {times:.2f} times one"
    (_, one), (_, most) = (found["latency_seconds"][count] for count in (1, max(COUNTS)))
    if most > one:
        yield f"{model}: p99 at {SHARE:.0%} of capacity is {most:.3f} s, on one {one:.3f} s"


def main() -> int:
    figures, lines = measure()
    for line in lines:
        print(f"missed: {line}")
    print(json.dumps({"cores": os.cpu_count(), "goals_met": not lines, **figures}))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
