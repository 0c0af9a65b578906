"""What one run left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.monitor import Sample
    from loadtests.records import Record


@dataclass
class RunData:
    """What one run left.

    Args:
        records: one for each request that was sent, in the order in which they ended.
        lateness: seconds by which the generators' heartbeats were late.
        samples: of the server's memory and the GPU.
        stop_reason: why the run ended early, None if it did not.
        mark: stood in its prompts.
        started_at: seconds since the epoch.
    """

    mark: str
    started_at: float = 0.0
    records: list[Record] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stop_reason: str | None = None
