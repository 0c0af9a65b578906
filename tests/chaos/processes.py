"""What a server's worker holds: memory, threads, file handles."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Holdings:
    """Of one process at one time."""

    rss_mb: float
    threads: int
    handles: int


def worker_of(supervisor: int) -> psutil.Process:
    """The process that serves: the largest one below the supervisor."""
    children = psutil.Process(supervisor).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def holdings(process: psutil.Process) -> Holdings:
    with process.oneshot():
        return Holdings(process.memory_info().rss / 1e6, process.num_threads(), process.num_fds())


def holdings_once(process: psutil.Process, settled: Callable[[Holdings], bool], seconds: float = 40.0) -> Holdings:
    """The holdings as soon as they are as expected, or at the end of the patience."""
    deadline = time.monotonic() + seconds
    while not settled(seen := holdings(process)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen
