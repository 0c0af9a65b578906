"""What every command says and how: failures, JSON, progress."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

stderr = Console(stderr=True, highlight=False)


def fail(message: str) -> NoReturn:
    """End with one line and exit code 1."""
    stderr.print(f"[red]error:[/red] {_escaped(' '.join(message.split()))}", soft_wrap=True)
    raise typer.Exit(1)


def print_json(value: Any) -> None:
    """One document on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


class Bar:
    """One progress bar on stderr: a stage's name, and how far it is where that is known."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def tell(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        self._progress.update(self._task, description=stage, completed=done or 0, total=total)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Bar]:
    """A bar that leaves nothing behind; silent where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=quiet or not stderr.is_terminal) as progress:
        yield Bar(progress)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
