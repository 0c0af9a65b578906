"""A job's place on its way through the engine, and the promise of its outcome. Pure Python.

Whoever takes a ticket out of the queue, or off a device, ends its future; it ends once.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sana_service.engine.costs import row_count
from sana_service.engine.errors import DeadlineExceeded, JobCancelled
from sana_service.engine.job import Artifact, Job

if TYPE_CHECKING:
    import numpy as np


class JobFuture(Future[Artifact]):
    """A job's promise. `cancel` asks the job to leave the device; the future then ends as any other."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        # Running from the start, so that nobody but the ticket's holder can end it.
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Cancel the job; False, because the future still ends, with `JobCancelled` or an artifact."""
        self._job.cancel()
        return False


@dataclass(eq=False)
class Ticket:
    """A job on its way, times in `time.monotonic()` seconds.

    Args:
        expected_seconds: from then to its end, as predicted when it came, unstretched.
        rows_left: transformer rows still to run, for predictions.
        images_left: images still to decode and finish, likewise.
        moved: whether its first device was lost.
        pixels: where the artifact's are to be; None for memory of their own.
    """

    job: Job
    future: JobFuture
    submitted_at: float
    expected_seconds: float = 0.0
    started_at: float = 0.0
    rows_left: int = field(init=False)
    images_left: int = field(init=False)
    moved: bool = False
    pixels: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._once = threading.Lock()
        self._begin()

    def restart(self) -> None:
        """Begin anew, from nothing."""
        self.moved = True
        self._begin()

    def _begin(self) -> None:
        self.rows_left = row_count(self.job)
        self.images_left = len(self.job.seeds)

    def took_rows(self, rows: int) -> None:
        """So many transformer rows are done."""
        self.rows_left -= rows

    def finished_image(self) -> None:
        """An image is decoded and finished."""
        self.images_left -= 1

    @property
    def ended(self) -> bool:
        """Whether the future has its outcome."""
        return self._once.locked()

    def end(self, outcome: Artifact | BaseException) -> bool:
        """Give the future its outcome; False where it already has one."""
        if not self._once.acquire(blocking=False):
            return False
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        return True

    def require_alive(self) -> None:
        """Raise `JobCancelled` or `DeadlineExceeded` where the job should not go on."""
        if self.job.cancelled:
            raise JobCancelled("the job was cancelled")
        if time.monotonic() >= self.job.deadline:
            raise DeadlineExceeded("the job's deadline passed")
