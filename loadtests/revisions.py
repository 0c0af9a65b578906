"""The two servers of a comparison: running ones, ones that a command starts, or ones of two commits."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from loadtests.coldstart import started, wait_for
from loadtests.errors import HarnessError

_ROOT = Path(__file__).resolve().parents[1]
_READY_SECONDS = 600.0

Serve = Callable[[], AbstractContextManager[str]]


@contextmanager
def serving(arguments: argparse.Namespace, arm: str) -> Iterator[Serve]:
    """What gives the address of a comparison's server for the time of one run.

    A server that a command starts is started for each run and stopped after it, so that the two never
    share the machine.

    Args:
        arguments: with `a`, `a_command`, `a_commit` (or `b`...) and `serve`.
        arm: "a" or "b".

    Raises:
        HarnessError: there is no such commit.
    """
    address, command, commit = (getattr(arguments, f"{arm}{suffix}") for suffix in ("", "_command", "_commit"))
    if address:

        @contextmanager
        def running() -> Iterator[str]:
            yield address.rstrip("/")

        yield running
        return
    if command:
        yield lambda: _started(command, None)
        return
    with _checkout(commit) as folder:
        yield lambda: _started(arguments.serve, folder)


@contextmanager
def _started(command: str, folder: Path | None) -> Iterator[str]:
    with started(command, folder) as (host, process):
        wait_for(host, process, "/readyz", _READY_SECONDS)
        yield host


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A commit's files in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="loadtests-") as parent:
        folder = Path(parent) / "checkout"
        _git("worktree", "add", "--detach", str(folder), commit)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"git {arguments[0]} {arguments[1]}: {done.stderr.strip().splitlines()[-1]}")
