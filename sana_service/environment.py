"""What libraries read from the environment at their import, and glibc when a process begins.

Called before they are imported, by whatever starts a process.
"""

from __future__ import annotations

from collections.abc import MutableMapping

QUIET = {
    "BENTOML_DO_NOT_TRACK": "true",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


def keep_quiet(environ: MutableMapping[str, str]) -> None:
    """Nothing is told to anybody, and no foreign code runs, where the operator has not set the variable."""
    for name, value in QUIET.items():
        environ.setdefault(name, value)


def keep_memory(environ: MutableMapping[str, str]) -> None:
    """Let a picture take the memory that the last one took, in the processes that this one starts.

    By default each thread keeps pieces of its own, and their ends go back to the kernel in between
    (docs/decisions.md).
    """
    for name, value in MEMORY.items():
        environ.setdefault(name, value)
