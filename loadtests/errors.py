"""What ends runs early, and what is left of them. Scenario files that are wrong are `scenario.ScenarioError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtests.rundata import RunData

INTERRUPTED = "interrupted by Ctrl-C or SIGTERM"


class HarnessError(Exception):
    """A run cannot begin, or cannot go on; the text is one line."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in the middle of a run.

    Args:
        data: what the run left, with `INTERRUPTED` as its stop reason.
    """

    def __init__(self, data: RunData) -> None:
        super().__init__(INTERRUPTED)
        self.data = data


def was_interrupted(part: dict[str, Any]) -> bool:
    """Whether a part of a document is what an interruption left."""
    repeats = part.get("repeats") or [{}]
    return INTERRUPTED in [*part.get("failures", []), *repeats[-1].get("failures", [])]


def reason(error: HarnessError | KeyboardInterrupt) -> str:
    """Why a measurement ended early, in a line."""
    return str(error) if isinstance(error, HarnessError) else INTERRUPTED
