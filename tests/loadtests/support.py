"""Servers with known queues and the harness, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loadtests import records
from loadtests.records import Record
from tests.services import free_port

ROOT = Path(__file__).parents[2]
_START_SECONDS = 30.0
# Both sides of a measurement go before what else the machine does, where the system allows it.
_REAL_TIME = ["chrt", "--fifo", "1"]


@cache
def _first() -> list[str]:
    """What stands before a command that measures."""
    with contextlib.suppress(OSError):
        if subprocess.run([*_REAL_TIME, "true"], capture_output=True, check=False).returncode == 0:
            return _REAL_TIME
    return []


@dataclass(frozen=True)
class QueueServer:
    """A running `queue_server`.

    Args:
        url: of it.
        log: file with a line for each request that was served.
        process: to be killed or asked whether it lives.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def served(self) -> list[tuple[int, int, float, float]]:
        """Seed, lane, service seconds and lateness of the answer, in the order of the answers."""
        return [tuple(json.loads(line)) for line in self.log.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def queue_server(folder: Path, *arguments: str) -> Iterator[QueueServer]:
    """A server that answers."""
    port, log = free_port(), folder / "served.jsonl"
    module = [*_first(), sys.executable, "-m", "tests.loadtests.queue_server"]
    process = subprocess.Popen([*module, "--port", str(port), "--log", str(log), *arguments], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/livez", timeout=5).close()
                break
            assert process.poll() is None
            assert time.monotonic() < deadline, "the queue server did not start"
            time.sleep(0.02)
        yield QueueServer(url, log, process)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Done:
    """A finished command.

    Args:
        code: its exit code.
        said: what it printed to stderr.
        folder: its reports.
    """

    code: int
    said: str
    folder: Path

    @property
    def lines(self) -> list[str]:
        return self.said.splitlines()

    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return document

    def run(self, part: int = 0, repeat: int = 0) -> dict[str, Any]:
        """The document of one run."""
        found: dict[str, Any] = self.result()["parts"][part]["repeats"][repeat]
        return found

    def records(self, name: str = "test") -> list[Record]:
        """Of the first run, in the order in which they were due."""
        return sorted(records.read(self.folder / f"{name}-1.jsonl"), key=lambda record: record.intended)


def harness(folder: Path, *arguments: str, key: str = "") -> Done:
    """`python -m loadtests ...` with its reports in a folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST", "SANA"))}
    clean |= {"SANA_LOAD_API_KEY": key} if key else {}
    out = folder / "out"
    where = [] if arguments[0] in {"report", "worker", "matrix-rate"} else ["--out", str(out)]
    done = subprocess.run(
        [*_first(), sys.executable, "-m", "loadtests", *arguments, *where],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return Done(done.returncode, done.stderr, out)


SCENARIO = """
name = "test"
kind = "server"
duration_seconds = {seconds}
answer_timeout_seconds = 20
{more}
[truth]
sample = {sample}
[arrivals]
process = "{process}"
rate = {rate}
[[requests]]
endpoint = "sprint"
image_size = "320x180"
{request}
"""


def write_scenario(
    folder: Path,
    *,
    seconds: float = 2.0,
    rate: float = 20.0,
    process: str = "poisson",
    sample: int = 0,
    more: str = "",
    request: str = "",
) -> str:
    """A scenario file; its path."""
    path = folder / "test.toml"
    path.write_text(
        SCENARIO.format(seconds=seconds, rate=rate, process=process, sample=sample, more=more, request=request)
    )
    return str(path)
