"""The whole service before one to eight devices, by the harness: `python -m tests.performance.served`.

With `--gpus` before those of this machine, full size with random weights; else before simulated ones, which take an
H100's time (`tests.performance.served_process`): HTTP, BentoML, encoding and storage are real. What
`tests.performance.devices` says of the queue, this says of a process. Throughput closed-loop with sixteen requests in
flight for each device, then the p99 latency of Poisson arrivals at 80 % of that. "4+4" are two processes at one address
with four devices each. Wants sixteen cores or more; the generator has two of them. The last line is JSON; the exit code
is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests import scenario
from loadtests.coldstart import started, wait_for
from loadtests.cores import shared_cores
from loadtests.harness import Harness, HarnessError, Options
from loadtests.trial import judged
from sana_service.environment import MEMORY
from tests.performance.devices import GOAL_TIMES, SHARE

KINDS = {
    "generate 3840x2160": {"endpoint": "generate", "image_size": "3840x2160"},
    "sprint 1024x1024": {"endpoint": "sprint", "image_size": "1024x1024"},
    "sprint 3840x2160": {"endpoint": "sprint", "image_size": "3840x2160"},
}
ARMS = ("1", "2", "4", "8", "1+1", "2+2", "4+4")
IN_FLIGHT = 16
"""For each device: a batch in work, one decoded, some that wait."""
SECONDS = {"generate": 24.0, "sprint": 9.0}
LATENCY_SECONDS = {"generate": 30.0, "sprint": 20.0}
WARM_UP_SECONDS = 3.0
READY_SECONDS = 240.0
_COMMAND = "python -m tests.performance.served_process {port}"
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


@dataclass(frozen=True)
class Host:
    """What the servers run on.

    Args:
        gpus: whether the devices are this machine's, or simulated.
        cores: of the servers; None for all.
        folder: for what they write.
    """

    gpus: bool
    cores: frozenset[int] | None
    folder: Path

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @contextmanager
    def served(self, arm: str) -> Iterator[Served]:
        """The service with so many devices in each of its processes, ready."""
        counts = [int(count) for count in arm.split("+")]
        variables = MEMORY | {
            "SANA_MODELS": "bundled",
            "SANA_STORAGE_URL": self.files.as_uri(),
            "SANA_MAX_QUEUE": "256",
        }
        if self.gpus:
            from tests.performance.gpu.hub_pair import write_safety

            safety = self.folder / "safety"
            write_safety(safety)
            variables |= {"SANA_MODELS": "random", "SANA_SAFETY_MODEL": str(safety)}
        processes = [f"env {self._devices(sum(counts[:i]), count)} {_COMMAND}" for i, count in enumerate(counts)]
        command = processes[0] if len(processes) == 1 else f'bash -c "{" & ".join(processes)}"'
        log = self.folder / "log"
        with started(command, environment=os.environ | variables, cores=self.cores, log=log) as (host, process):
            try:
                # A new connection each time, so that each process is met.
                for _ in range(1 if len(counts) == 1 else 8 * len(counts)):
                    wait_for(host, process, "/readyz", READY_SECONDS)
            except HarnessError:
                print(log.read_text()[-4000:], flush=True)
                raise
            one = Served(host, process.pid, alone=len(counts) == 1)
            try:
                yield one
            finally:
                one.close()

    def _devices(self, first: int, count: int) -> str:
        """The variable that gives a process its devices."""
        if self.gpus:
            return f"SANA_DEVICES={','.join(f'cuda:{first + i}' for i in range(count))}"
        return f"SIMULATED_DEVICES={count}"


def measure(host: Host, arms: list[str], kinds: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Figures by kind and arm, and the goals that were missed."""
    result: dict[str, Any] = {kind: {} for kind in kinds}
    missed: list[str] = []
    most = max(map(_devices, arms))
    for arm in arms:
        devices = _devices(arm)
        with host.served(arm) as server:
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
                if devices in {1, most}:
                    tail = figures["at_load"] = server.latency(kind, SHARE * rate)
                    print(
                        f"{kind}, {arm} devices at {SHARE:.0%}: p50 {tail['p50'] or 0:.3f} s, "
                        f"p99 {tail['p99'] or 0:.3f} s of {tail['requests']} requests",
                        flush=True,
                    )
                    missed += [f"{kind}, {arm} devices: {one}" for one in tail["failures"] + tail["invalid"]]
                for file in host.files.glob("*.jpg"):
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
    tails = [each["at_load"]["p99"] for arm, each in figures.items() if arm != "1" and "at_load" in each]
    if one and all(tails) and tails and min(tails) > one:
        missed.append(f"{kind}: p99 at {SHARE:.0%} of capacity is {min(tails):.3f} s, on one {one:.3f} s")
    return missed


def _present() -> list[str]:
    """Arms for this machine's GPUs."""
    import torch

    return [str(2**power) for power in range(torch.cuda.device_count().bit_length())]


def _devices(arm: str) -> int:
    return sum(map(int, arm.split("+")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="one device is always measured")
    parser.add_argument("--gpus", action="store_true", help="before this machine's, by default 1, 2, 4 and so on")
    wanted = parser.parse_args()
    arms = wanted.arms or (_present() if wanted.gpus else ["1", "2", "4", "8", "4+4"])
    arms = ["1", *(arm for arm in arms if arm != "1")]
    with tempfile.TemporaryDirectory() as folder, shared_cores(2, print) as cores:
        result, missed = measure(Host(wanted.gpus, cores, Path(folder)), arms, wanted.kinds)
    for line in missed:
        print(f"missed: {line}")
    print(json.dumps({"cores": os.cpu_count(), "goals_met": not missed, **result}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
