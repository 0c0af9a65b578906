"""Which cores the generator has for itself.

A server that encodes a picture on all cores at once makes a generator beside it wait for a scheduler's
slice, a few milliseconds, whatever the priorities. Cores of its own end that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SERVER_SHARE = 4


@contextmanager
def shared_cores(generator: int, say: Callable[[str], None]) -> Iterator[frozenset[int] | None]:
    """Keep this process on its own cores meanwhile; the cores that are left for servers, None for all.

    Args:
        generator: how many cores to keep. They are shared all the same, and `say` is told so, where that would
            leave the servers fewer than four times as many, or where the system has no affinity.
        say: told a line.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not generator:
        yield None
        return
    if len(cores) < generator * (1 + _SERVER_SHARE):
        say(f"the generator shares the {len(cores) or os.cpu_count()} cores with the servers")
        yield None
        return
    os.sched_setaffinity(0, cores[-generator:])
    try:
        yield frozenset(cores[:-generator])
    finally:
        os.sched_setaffinity(0, cores)
