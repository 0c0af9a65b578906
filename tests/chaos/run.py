"""Chaos: a real server, a crowd of clients, every fault, restarts; then the accounts must agree to the last request.

    python -m tests.chaos.run --seconds 600 --out results/chaos.json

A life is one start of the server, ended by SIGTERM (everything accepted is answered) or by `kill -9` of the worker (the
supervisor ends with it, as an orchestrator wants). In a life clients draw, leave, send nonsense and overload, while
faults come and go. Each request has an id of its own, so three accounts can be compared: what the clients saw, what
`/metrics` says, and what the log says of each id. After a life that was drained they are equal; after one that was
killed the log may miss what was under way, and clients send that again, as a balancer would, which is counted apart.
Queued jobs live in a database through all lives, and each must end once.

What is not shown: more than one replica, a real GPU, a network that loses packets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import services
from tests.chaos.accounts import ENDS, settled
from tests.chaos.attack import attack
from tests.chaos.conftest import COMMAND
from tests.chaos.crowd import EXPECTED, MAY_FAIL, QUEUE, SWITCHES, Crowd, Ledger
from tests.chaos.processes import holdings, holdings_once, worker_of
from tests.e2e.test_queue_survival import count_ends


def ends_in_log(log: str) -> dict[str, list[tuple[str, int]]]:
    """Outcome and units of each request id, as often as the log has them."""
    ends: dict[str, list[tuple[str, int]]] = {}
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line) if line.startswith("{") else {}
            words = str(record.get("message", "")).replace(",", "").split()
            if words[:1] == ["ended:"]:
                units = int(words[3]) if words[2] == "completed" else 0
                ends.setdefault(record["request_id"], []).append((words[2], units))
    return ends


def sums(ends: dict[str, list[tuple[str, int]]]) -> Counter[str]:
    """Requests by outcome, and units, as the log has them."""
    counts = Counter(outcome for each in ends.values() for outcome, _ in each)
    counts["units"] = sum(units for each in ends.values() for _, units in each)
    return counts


def compare(ledger: Ledger, ends: dict[str, list[tuple[str, int]]]) -> list[str]:
    """Where clients and log differ, request by request; nothing where they agree."""
    faults = []
    for identifier, (status, units) in ledger.answered.items():
        allowed = (EXPECTED[status],) if status in EXPECTED else MAY_FAIL.get(status, ())
        told = ends.get(identifier, [])
        if len(told) != 1 or told[0][0] not in allowed or told[0][1] != units:
            faults.append(f"{identifier}: answered {status} and {units} units, the log has {told}")
    unanswered = ledger.left | ledger.lost
    faults += [f"{one}: ended more than once: {ends[one]}" for one in unanswered if len(ends.get(one, [])) > 1]
    strangers = {one for one in ends if one.startswith("life")} - set(ledger.answered) - unanswered
    faults += [f"{one}: in the log, and nobody sent it" for one in sorted(strangers)[:3]]
    return faults


@dataclass
class Report:
    """Sums over all lives."""

    clients: Counter[str] = field(default_factory=Counter)
    service: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    leaks: list[dict[str, float]] = field(default_factory=list)
    retried: int = 0
    lives: Counter[str] = field(default_factory=Counter)
    jobs: list[str] = field(default_factory=list)

    def book(self, number: int, ledger: Ledger, ends: dict[str, list[tuple[str, int]]]) -> None:
        self.clients += ledger.outcomes()
        self.service += sums(ends)
        self.probes += ledger.probes
        self.checked["requests compared one by one"] += len(ledger.answered)
        self.checked["pictures looked at"] += ledger.pictures
        self.faults += [f"life {number}: {fault}" for fault in ledger.broken + compare(ledger, ends)]

    def summary(self) -> dict[str, Any]:
        probes = sorted(self.probes)
        return {
            "faults": self.faults,
            "lives": dict(self.lives),
            "clients": dict(self.clients),
            "service": dict(self.service),
            "retried": self.retried,
            "queued jobs": len(self.jobs),
            "checked": dict(self.checked),
            "leaks": self.leaks,
            "readyz_p99_seconds": round(probes[int(len(probes) * 0.99)], 4) if probes else None,
        }


class Life:
    """One start of the server, and what is done in it."""

    def __init__(self, number: int, server: services.Server, switches: Path, report: Report) -> None:
        self.number = number
        self.server = server
        self.report = report
        self.worker = worker_of(server.process.pid)
        self.crowd = Crowd(server.url, switches, number, seed=number)

    def run(self, seconds: float, *, kill: bool, again: int) -> int:
        """Live; how many requests were lost."""
        self.crowd.again = again
        self.report.retried += again
        self.report.lives["killed" if kill else "drained"] += 1
        if kill:
            asyncio.run(self._killed_midway(seconds))
            self._expect_end(clean=False)
            self.report.book(self.number, self.crowd.ledger, ends_in_log(self.server.log))
            self.report.jobs += self.crowd.jobs
        else:
            self._settled(seconds)
            self._drained()
        return len(self.crowd.ledger.lost)

    async def _killed_midway(self, seconds: float) -> None:
        running = asyncio.create_task(self.crowd.run(seconds))
        await asyncio.sleep(seconds * 0.7)
        os.kill(self.worker.pid, signal.SIGKILL)
        await running

    def _settled(self, seconds: float) -> None:
        """Load, then quiet: the accounts agree, and nothing is held that was not before."""
        report = self.report
        with self.server.client() as http:
            asyncio.run(attack(self.server.url, 200, seed=self.number))
            # The first third fills pools and caches, of which some are kept for every size and stage.
            asyncio.run(self.crowd.run(seconds / 3))
            start = holdings(self.worker)
            asyncio.run(self.crowd.run(seconds * 2 / 3))
            self._wait_for_jobs(http)

            def agreed(counts: Counter[str]) -> bool:
                told = sums(ends_in_log(self.server.log))
                return counts["in flight"] == 0 and all(counts[name] == told[name] for name in (*ENDS, "units"))

            counts = settled(http, agreed, 60)
            if not agreed(counts):
                told = dict(sums(ends_in_log(self.server.log)))
                report.faults.append(f"life {self.number}: /metrics has {dict(counts)}, the log {told}")
            files = len(list(self.server.storage.iterdir()))
            if files != counts["images"]:
                report.faults.append(f"life {self.number}: {counts['images']} images counted, {files} files")
        report.checked["accounts equal"] += 1
        end = holdings_once(self.worker, lambda seen: seen.handles <= start.handles, 15.0)
        report.leaks.append({
            "seconds": round(seconds * 2 / 3, 1),
            "rss_mb": round(end.rss_mb - start.rss_mb, 1),
            "handles": end.handles - start.handles,
            "threads": end.threads - start.threads,
        })  # fmt: skip
        if end.handles > start.handles + 2:
            report.faults.append(f"life {self.number}: {start.handles} handles became {end.handles}")

    def _wait_for_jobs(self, http: httpx.Client) -> None:
        """Until every job of this life, and of those before it, has ended."""
        self.report.jobs += self.crowd.jobs
        deadline = time.monotonic() + 120
        for job in self.report.jobs:
            path = f"{QUEUE.removesuffix('/sprint')}/requests/{job}/status"
            while http.get(path).status_code == 202 and time.monotonic() < deadline:
                time.sleep(0.2)

    def _drained(self) -> None:
        """SIGTERM while requests are under way: each is answered, and the end is 0."""
        crowd = self.crowd
        asyncio.run(crowd.drained_midway(self.server.process))
        self._expect_end(clean=True)
        self.report.book(self.number, crowd.ledger, ends_in_log(self.server.log))
        answers = [crowd.ledger.answered.get(one, (0, 0))[0] for one in crowd.at_the_end]
        if any(status not in {200, 429} for status in answers):
            self.report.faults.append(f"life {self.number}: at SIGTERM requests were answered {answers}")
        self.report.checked["drained while busy"] += 1

    def _expect_end(self, *, clean: bool) -> None:
        code = self.server.process.wait(60)
        if (code == 0) is not clean:
            self.report.faults.append(f"life {self.number}: the server ended with {code}")


def chaos(seconds: float, folder: Path) -> dict[str, Any]:
    """Lives until the time is up; the summary."""
    from sana_service.models.bundled.random_pair import build_random_pair

    base, sprint = build_random_pair(folder / "pair")
    switches = folder / "switches"
    switches.mkdir()
    database = folder / "jobs" / "jobs.db"
    variables = {
        "SANA_MODELS": "hub", "SANA_BASE_MODEL": str(base), "SANA_SPRINT_MODEL": str(sprint),
        "SANA_SAFETY_MODEL": "off", "SANA_LOG_FORMAT": "json", "SANA_MAX_QUEUE": "6",
        "SANA_REQUEST_TIMEOUT_SECONDS": "10", "SANA_JOBS_URL": f"sqlite://{database}", "SANA_JOBS_CONCURRENCY": "1",
        "FAULTS_FOLDER": str(switches), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    report, until, number, lost = Report(), time.monotonic() + seconds, 0, 0
    length = min(60.0, max(4.0, seconds / 4))
    # The last life is a drained one, which waits for all jobs.
    while number % 2 or number < 2 or time.monotonic() < until:
        number += 1
        with services.server(folder / f"life{number}", variables, command=COMMAND) as server:
            if number == 1:
                count_ends(database)
            kill = number % 2 == 1
            lost = Life(number, server, switches, report).run(length, kill=kill, again=lost)
        for switch in SWITCHES:
            (switches / switch).unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as sql:
        ends = dict(sql.execute("SELECT id, number FROM ends"))
    report.faults += [f"job {one} ended {ends.get(one, 0)} times" for one in report.jobs if ends.get(one) != 1]
    report.checked["jobs that ended once"] = sum(1 for one in report.jobs if ends.get(one) == 1)
    return report.summary()


def main() -> int:
    """Run, print the summary and write it; 1 where an invariant broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = chaos(options.seconds, Path(folder))
    text = json.dumps(summary, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if summary["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
