"""The queue before the devices: bounded, first in first out, shared by all device loops. Pure Python.

A ticket is in the queue or in one loop's hands, never in both; whoever takes it out ends its
future. Futures end outside the lock, since their callbacks may submit again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from sana_service.engine.costs import Costs
from sana_service.engine.errors import DeadlineExceeded, DeadlineOutOfReach, JobCancelled, NotReady, QueueFull
from sana_service.engine.job import Artifact, Job

MIN_RETRY_AFTER_SECONDS = 1.0


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
    """A job on its way, times in `time.monotonic()` seconds."""

    job: Job
    future: JobFuture
    submitted_at: float
    started_at: float = field(default=0.0)

    def require_alive(self) -> None:
        """Raise `JobCancelled` or `DeadlineExceeded` where the job should not go on."""
        if self.job.cancelled:
            raise JobCancelled("the job was cancelled")
        if time.monotonic() >= self.job.deadline:
            raise DeadlineExceeded("the job's deadline passed")


class JobQueue:
    """Admits jobs and hands them out.

    Args:
        max_queue: jobs that may wait; those on a device do not count.
        loops: how many device loops take from here.
        costs: predicts service times.
    """

    def __init__(self, max_queue: int, loops: int, costs: Costs) -> None:
        self._max_queue = max_queue
        self._loops = loops
        self._costs = costs
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._refusal: str | None = "the engine has not started"

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def position(self, job: Job) -> int | None:
        """Jobs that wait before this one; None where it does not wait."""
        with self._changed:
            return next((i for i, ticket in enumerate(self._waiting) if ticket.job is job), None)

    @property
    def accepting(self) -> bool:
        return self._refusal is None

    def open(self) -> None:
        """Take jobs from now on."""
        with self._changed:
            self._refusal = None

    def close(self, why: str) -> None:
        """Take no more jobs; those here are still handed out."""
        with self._changed:
            self._refusal = why
            self._changed.notify_all()

    def put(self, job: Job) -> JobFuture:
        """Admit a job.

        Raises:
            NotReady: the queue is not open.
            QueueFull: no room, or (`DeadlineOutOfReach`) the jobs before it take longer than its
                deadline allows.
        """
        self.sweep()
        with self._changed:
            if self._refusal is not None:
                raise NotReady(self._refusal)
            self._require_room(job)
            ticket = Ticket(job, JobFuture(job), time.monotonic())
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket.future

    def take(self) -> Ticket | None:
        """The next job, waiting for one; None once the queue is closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._refusal is not None:
                    return None
                self._changed.wait()
            ticket = self._waiting.popleft()
            ticket.started_at = time.monotonic()
            self._running.add(ticket)
            return ticket

    def done(self, ticket: Ticket) -> None:
        """The loop that took the ticket is free again."""
        with self._changed:
            self._running.discard(ticket)
            self._changed.notify_all()

    def sweep(self) -> None:
        """End the waiting jobs that were cancelled or expired, so that they hold no room."""
        dead: list[tuple[Ticket, Exception]] = []
        with self._changed:
            for ticket in tuple(self._waiting):
                try:
                    ticket.require_alive()
                except (JobCancelled, DeadlineExceeded) as error:
                    self._waiting.remove(ticket)
                    dead.append((ticket, error))
            if dead:
                self._changed.notify_all()
        for ticket, reason in dead:
            ticket.future.set_exception(reason)

    def abandon(self, why: str) -> None:
        """Close, and end every waiting job with `NotReady`."""
        self.close(why)
        with self._changed:
            abandoned = tuple(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for ticket in abandoned:
            ticket.future.set_exception(NotReady(why))

    def wait_empty(self, timeout_seconds: float) -> bool:
        """Wait until nothing waits or runs; False where that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout_seconds)

    def _require_room(self, job: Job) -> None:
        now = time.monotonic()
        # A cancelled job leaves the device within a step.
        remaining = [
            0.0 if ticket.job.cancelled else max(0.0, self._costs.predict(ticket.job) - (now - ticket.started_at))
            for ticket in self._running
        ]
        idle = self._loops - len(self._running)
        if len(self._waiting) >= self._max_queue + idle:
            raise QueueFull(max(MIN_RETRY_AFTER_SECONDS, min(remaining, default=0.0)))
        if len(self._waiting) < idle:
            return
        waiting = [self._costs.predict(ticket.job) for ticket in self._waiting]
        late = now + (sum(remaining) + sum(waiting)) / self._loops - job.deadline
        if late >= 0:
            raise DeadlineOutOfReach(max(MIN_RETRY_AFTER_SECONDS, late))
