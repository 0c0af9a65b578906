"""A queued request and what became of it: plain data, the same in every store.

    queued --claim--> running --finish--> done
      |  ^              |
      |  `---release----'   (try again later, or the worker's lease lapsed)
      `-----cancel------------------------> done

A job ends once: only the owner of a running job, or whoever ends a queued one, makes it done, and
nothing leaves that state until it expires. Times are POSIX seconds.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["queued", "running", "done"]
Cancelled = Literal["ended", "requested", "done"]

NORMAL_PRIORITY, LOW_PRIORITY = 0, 1


class StoreError(Exception):
    """The store did not answer; the message is one line, without credentials."""


class StoreFull(Exception):
    """As many jobs wait as may.

    Args:
        waiting: how many.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} jobs wait")
        self.waiting = waiting


@dataclass(frozen=True)
class Job:
    """A request as it was queued.

    Args:
        id: 32 hexadecimal digits, unguessable.
        model: which endpoint, "base" or "sprint".
        payload: the request's JSON object, as the client sent it.
        base_url: under which the client reaches `/files/`.
        submitted_at: POSIX seconds.
        priority: lower goes first.
        start_by: POSIX seconds after which it is not worth starting; None for ever.
        retry: whether it is tried again after a crash or where the device was unavailable.
        lifetime_seconds: after which its images are deleted; None for the operator's.
        webhook: where its end is told.
    """

    id: str
    model: str
    payload: str
    base_url: str
    submitted_at: float
    priority: int = NORMAL_PRIORITY
    start_by: float | None = None
    retry: bool = True
    lifetime_seconds: float | None = None
    webhook: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Ending:
    """The response that a job ended with, replayed as it is.

    Args:
        status: HTTP status.
        headers: of the response.
        body: JSON.
        inference_seconds: from claim to end; None where nothing ran.
        error, error_type: in a sentence and in fal's word, where it failed.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    inference_seconds: float | None = None
    error: str | None = None
    error_type: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.status < 400

    def head_to_json(self) -> str:
        """Everything but the body."""
        head = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "body"}
        return json.dumps(head)

    @classmethod
    def from_parts(cls, head: str | bytes, body: bytes) -> Ending:
        return cls(body=body, **json.loads(head))


@dataclass(frozen=True)
class LogLine:
    """One thing that happened on a job's way, as fal's clients show it."""

    message: str
    timestamp: str
    level: str = "INFO"
    source: str = "sana"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Report:
    """How far a running job is.

    Args:
        logs: what happened so far.
        stage, steps_done, steps: of the engine's progress; empty and 0 before it began.
    """

    logs: tuple[LogLine, ...] = ()
    stage: str = ""
    steps_done: int = 0
    steps: int = 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes | None) -> Report:
        if not text:
            return cls()
        values = json.loads(text)
        return cls(**{**values, "logs": tuple(LogLine(**line) for line in values["logs"])})


@dataclass(frozen=True)
class JobRecord:
    """A job and where it stands.

    Args:
        attempts: how often it was claimed and counted.
        cancel_requested: whether its client no longer wants it.
        ending: None until it is done.
    """

    job: Job
    state: State
    attempts: int = 0
    cancel_requested: bool = False
    report: Report = Report()
    ending: Ending | None = None


@dataclass(frozen=True)
class Delivery:
    """A webhook call that is due.

    Args:
        record: the job that ended.
        attempt: from 0.
    """

    record: JobRecord
    attempt: int


def new_job_id() -> str:
    """128 random bits: knowing an id and a key is the permission to see the job."""
    return secrets.token_hex(16)
