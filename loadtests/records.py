"""What is known of each request once it is over, and the file of them.

Records are written as they come, a JSON object a line, so that what was measured before a crash is kept.
All times are seconds on one clock that is 0 at the start of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

CANCELLED = "cancelled as planned"
UNANSWERED = "unanswered at the end"


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Args:
        index: its number in the run.
        endpoint, width, height, output_format, num_images, steps: what was asked.
        intended: when it was due; in a closed loop when it was sent.
        sent: when the client began to send it.
        done: when the whole answer was there, or when it failed.
        status: of the answer, 0 without one.
        error: what is wrong, None if nothing is; `CANCELLED` and `UNANSWERED` are no answers either.
        retry_after: the header of a 429 or 503 in seconds, None without one that is a number.
        stages: seconds of each `Server-Timing` entry that has a duration.
        batch_size: as far as the server tells it.
        billable_units: as the server says.
        response_bytes: length of the answer's body.
        seed: given back by the server.
        flagged: whether some image was replaced by a black one.
        image_urls: of the images, for the check afterwards.
    """

    index: int
    endpoint: str
    width: int
    height: int
    output_format: str
    num_images: int
    steps: int
    intended: float
    sent: float
    done: float
    status: int = 0
    error: str | None = None
    retry_after: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    batch_size: float | None = None
    billable_units: int = 0
    response_bytes: int = 0
    seed: int | None = None
    flagged: bool = False
    image_urls: tuple[str, ...] = ()

    @property
    def latency(self) -> float:
        """Seconds from the intended start."""
        return self.done - self.intended

    @property
    def lag(self) -> float:
        """Seconds that the generator was late."""
        return self.sent - self.intended

    @property
    def refused(self) -> bool:
        """A 429 or 503 that says when to come back: the answer of a server that knows its limits."""
        return self.status in {429, 503} and self.retry_after is not None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def failed(self) -> bool:
        """Neither answered rightly, nor refused by the rules, nor cancelled by the client itself."""
        return self.error is not None and not self.refused and self.error != CANCELLED

    @property
    def kind(self) -> str:
        """What it is counted under."""
        return f"{self.endpoint} {self.width}x{self.height} {self.output_format}"


def from_json(values: dict[str, Any]) -> Record:
    """The record that `asdict` made these values of."""
    return Record(**{**values, "image_urls": tuple(values["image_urls"])})


def to_json(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [asdict(record) for record in records]


class RecordFile:
    """Writes records as they come.

    Args:
        path: of the file, replaced if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(asdict(record)) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Record]:
    """The records of a file."""
    return [from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
