"""The whole service before one to eight simulated devices, by the harness: `python -m tests.performance.served`.

What `tests.performance.devices` says of the queue, this says of a process: HTTP, BentoML, encoding and storage are
real, the devices take an H100's time (`tests.performance.served_devices`). Throughput closed-loop with sixteen
requests in flight for each device, then the p99 latency of Poisson arrivals at 80 % of that. "4+4" are two processes
at one address with four devices each. Wants sixteen cores or more; the generator has two of them. The last line is
JSON; the exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtests import scenario
from loadtests.coldstart import started, wait_for
from loadtests.cores import shared_cores
from loadtests.harness import Harness, Options
from loadtests.trial import judged
from tests.performance.devices import GOAL_TIMES, LOAD

KINDS = {
    "generate 3840x2160": {"endpoint": "generate", "image_size": "3840x2160"},
    "sprint 1024x1024": {"endpoint": "sprint", "image_size": "1024x1024"},
    "sprint 3840x2160": {"endpoint": "sprint", "image_size": "3840x2160"},
}
ARMS = ("1", "2", "4", "8", "4+4")
IN_FLIGHT = 16
"""For each device: a batch in work, one decoded, some that wait."""
SECONDS = {"generate": 24.0, "sprint": 9.0}
LATENCY_SECONDS = {"generate": 30.0, "sprint": 20.0}
WARM_UP_SECONDS = 3.0
_COMMAND = "python -m tests.performance.served_devices {port}"
_TICKS = os.sysconf("SC_CLK_TCK")


class Served:
    """A server and what asks it."""

    def __init__(self, host: str, pid: int, *, alone: bool) -> None:
        self._pid, self._alone = pid, alone
        self._harness = Harness(Options(host=host, server_pid=pid))

    def close(self) -> None:
        self._harness.close()

    def throughput(self, kind: str, devices: int) -> dict[str, Any]:
        """Images a second up to the last answer, and the host's CPU time of each where one process serves."""
        request = KINDS[kind]
        seconds = SECONDS[request["endpoint"]]
        load = {"kind": "offline", "in_flight": IN_FLIGHT * devices, "duration_seconds": seconds}
        before = self._cpu_seconds()
        found = self._run(load, request)
        if not self._alone:
            return found
        spent = zip(("loop_cpu_ms", "process_cpu_ms"), before, self._cpu_seconds(), strict=True)
        return found | {name: (after - first) / found["all_answered"] * 1000 for name, first, after in spent}

    def latency(self, kind: str, rate: float) -> dict[str, Any]:
        """p99 of Poisson arrivals."""
        request = KINDS[kind]
        seconds = LATENCY_SECONDS[request["endpoint"]]
        load = {
            "kind": "server",
            "arrivals": {"process": "poisson", "rate": rate},
            "duration_seconds": seconds,
        }
        return self._run(load, request)

    def _run(self, load: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        document = load | {
            "name": f"{load['kind']}-{request['endpoint']}",
            "warm_up_seconds": WARM_UP_SECONDS,
            "requests": [request],
            "objective": {"sprint_seconds": 60, "generate_seconds": 60},
            "truth": {"sample": 0},
        }
        parsed = scenario.parse(document, document["name"])
        assert not isinstance(parsed, scenario.ColdStart)
        data = self._harness.run(parsed)
        run = judged(parsed, 0, data, None)
        figures = run["all"]
        # Of the whole run: answers come in waves, and a window catches one more or less.
        answers = [record.done for record in data.records if record.ok]
        return {
            "images_a_second": len(answers) / max(answers),
            "p50": figures["latency_seconds"].get("p50"),
            "p99": figures["latency_seconds"].get("p99"),
            "requests": figures["requests"],
            "all_answered": len(answers),
            "failures": run["failures"],
            "invalid": run["invalid"],
        }

    def _cpu_seconds(self) -> tuple[float, float]:
        """CPU time so far of the event loop's thread, which is the first, and of the process."""
        loop = Path(f"/proc/{self._pid}/task/{self._pid}/stat")
        return _seconds(loop), _seconds(Path(f"/proc/{self._pid}/stat"))


def _seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def served(arm: str, cores: frozenset[int] | None, storage: str) -> Iterator[Served]:
    """The service with so many devices in each of its processes, ready."""
    counts = arm.split("+")
    environment = os.environ | {
        "SANA_MODELS": "bundled",
        "SANA_STORAGE_URL": Path(storage).as_uri(),
        "SIMULATED_DEVICES": counts[0],
    }
    command = _COMMAND if len(counts) == 1 else f'bash -c "{" & ".join([_COMMAND] * len(counts))}"'
    with started(command, environment=environment, cores=cores, log=Path(storage) / "log") as (host, process):
        # A new connection each time, so that each process is met.
        for _ in range(1 if len(counts) == 1 else 8 * len(counts)):
            wait_for(host, process, "/readyz", 120)
        one = Served(host, process.pid, alone=len(counts) == 1)
        try:
            yield one
        finally:
            one.close()


def measure(
    arms: list[str], kinds: list[str], cores: frozenset[int] | None, storage: str
) -> tuple[dict[str, Any], list[str]]:
    """Figures by kind and arm, and the goals that were missed."""
    result: dict[str, Any] = {kind: {} for kind in kinds}
    missed: list[str] = []
    for arm in arms:
        devices = _devices(arm)
        with served(arm, cores, storage) as server:
            for kind in kinds:
                figures = result[kind][arm] = server.throughput(kind, devices)
                rate = figures["images_a_second"]
                figures["times"] = rate / result[kind]["1"]["images_a_second"]
                loop, process = figures.get("loop_cpu_ms"), figures.get("process_cpu_ms")
                used = f"; CPU time of each {loop:.2f} ms in the loop's thread, {process:.1f} in all" if loop else ""
                print(
                    f"{kind}, {arm} devices: {rate:.1f} images a second, {figures['times']:.2f} times one{used}",
                    flush=True,
                )
                missed += [f"{kind}, {arm} devices: {one}" for one in figures["failures"] + figures["invalid"]]
                if devices in {1, 8}:
                    tail = figures["at_load"] = server.latency(kind, LOAD * rate)
                    print(
                        f"{kind}, {arm} devices at {LOAD:.0%}: p50 {tail['p50'] or 0:.3f} s, "
                        f"p99 {tail['p99'] or 0:.3f} s of {tail['requests']} requests",
                        flush=True,
                    )
                    missed += [f"{kind}, {arm} devices: {one}" for one in tail["failures"] + tail["invalid"]]
                for file in Path(storage).glob("*.jpg"):
                    file.unlink()
    return result, missed + [line for kind in kinds for line in goals_missed(kind, result[kind])]


def goals_missed(kind: str, figures: dict[str, Any]) -> list[str]:
    """Numbers of devices that no arrangement of processes reaches the goal with."""
    missed = []
    for devices, goal in GOAL_TIMES.items():
        times = [each["times"] for arm, each in figures.items() if _devices(arm) == devices]
        if times and max(times) < goal:
            missed.append(f"{kind}: {devices} devices are {max(times):.2f} times one")
    one = figures["1"]["at_load"]["p99"]
    tails = [each["at_load"]["p99"] for arm, each in figures.items() if _devices(arm) == 8]
    if one and all(tails) and tails and min(tails) > one:
        missed.append(f"{kind}: p99 at {LOAD:.0%} of capacity is {min(tails):.3f} s, on one {one:.3f} s")
    return missed


def _devices(arm: str) -> int:
    return sum(map(int, arm.split("+")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="one device is always measured")
    wanted = parser.parse_args()
    arms = ["1", *(arm for arm in wanted.arms if arm != "1")]
    with tempfile.TemporaryDirectory() as storage, shared_cores(2, print) as cores:
        result, missed = measure(arms, wanted.kinds, cores, storage)
    for line in missed:
        print(f"missed: {line}")
    print(json.dumps({"cores": os.cpu_count(), "goals_met": not missed, **result}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
