"""The queue before the devices: bounded, a lane for each endpoint, shared by all device loops. Pure Python.

A lane is first in, first out, and a device loop takes from it while it has seats of that endpoint: so many images may
be on one device, from text to pixels. One endpoint's full seats never hold up the other.

A ticket is in the queue or in one loop's hands, never in both; whoever takes it out ends its future. Futures end
outside the lock, since their callbacks may submit again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from sana_service.engine.costs import Costs, row_count
from sana_service.engine.errors import DeadlineExceeded, DeadlineOutOfReach, JobCancelled, NotReady, QueueFull
from sana_service.engine.job import Artifact, Job
from sana_service.models.names import ModelName

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
    """A job on its way, times in `time.monotonic()` seconds.

    Args:
        rows_left: transformer rows still to run, for predictions.
        images_left: images still to decode and finish, likewise.
    """

    job: Job
    future: JobFuture
    submitted_at: float
    started_at: float = 0.0
    rows_left: int = field(init=False)
    images_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows_left = row_count(self.job)
        self.images_left = len(self.job.seeds)

        self._once = threading.Lock()

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


class Downstream(Protocol):
    """What artifacts go through after the engine: encoding. Its backlog counts when a job is admitted."""

    @property
    def waiting(self) -> int:
        """Jobs whose turn has not come."""

    @property
    def backlog_seconds(self) -> float:
        """Predicted time until a job that came now would have its turn."""


class JobQueue:
    """Admits jobs and hands them out.

    Args:
        max_queue: jobs that may wait; those that have a seat on a device do not count.
        loops: how many device loops take from here.
        seats: images of each model that may be on one device.
        costs: predicts service times.
        downstream: what comes after the engine, if anything that can be congested.
    """

    def __init__(
        self,
        max_queue: int,
        loops: int,
        seats: Mapping[ModelName, int],
        costs: Costs,
        downstream: Downstream | None = None,
    ) -> None:
        self._max_queue = max_queue
        self._loops = loops
        self._seats = dict(seats)
        self._costs = costs
        self._downstream = downstream
        self._changed = threading.Condition()
        self._waiting: dict[ModelName, deque[Ticket]] = {model: deque() for model in seats}
        self._running: dict[Ticket, int] = {}
        self._refusal: str | None = "the engine has not started"

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    def position(self, job: Job) -> int | None:
        """Jobs of its endpoint that wait before this one; None where it does not wait."""
        with self._changed:
            return next((i for i, ticket in enumerate(self._waiting[job.model]) if ticket.job is job), None)

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
            self._waiting[job.model].append(ticket)
            self._changed.notify_all()
        return ticket.future

    def take(self, loop: int) -> Ticket | None:
        """The next job that a loop has seats for, waiting for one; None once the queue is closed and empty."""
        with self._changed:
            while True:
                ready = [lane[0] for lane in self._waiting.values() if lane and self._fits(lane[0].job, loop)]
                if ready:
                    ticket = min(ready, key=lambda ticket: ticket.submitted_at)
                    self._waiting[ticket.job.model].popleft()
                    ticket.started_at = time.monotonic()
                    self._running[ticket] = loop
                    return ticket
                if self._refusal is not None and not self.waiting:
                    return None
                self._changed.wait()

    def done(self, ticket: Ticket) -> None:
        """The job has left its loop."""
        with self._changed:
            self._running.pop(ticket, None)
            self._changed.notify_all()

    def sweep(self) -> None:
        """End the waiting jobs that were cancelled or expired, so that they hold no room."""
        dead: list[tuple[Ticket, Exception]] = []
        with self._changed:
            for ticket in tuple(self._tickets()):
                try:
                    ticket.require_alive()
                except (JobCancelled, DeadlineExceeded) as error:
                    self._waiting[ticket.job.model].remove(ticket)
                    dead.append((ticket, error))
            if dead:
                self._changed.notify_all()
        for ticket, reason in dead:
            ticket.end(reason)

    def abandon(self, why: str) -> None:
        """Close, and end every waiting job with `NotReady`."""
        self.close(why)
        with self._changed:
            abandoned = tuple(self._tickets())
            for lane in self._waiting.values():
                lane.clear()
            self._changed.notify_all()
        for ticket in abandoned:
            ticket.end(NotReady(why))

    def wait_empty(self, timeout_seconds: float) -> bool:
        """Wait until nothing waits or runs; False where that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.waiting and not self._running, timeout_seconds)

    def predicted_wait(self, model: ModelName) -> float:
        """Seconds until a job of a model that came now would be the first of its endpoint."""
        with self._changed:
            return self._predicted_wait(model)

    def _tickets(self) -> Iterator[Ticket]:
        for lane in self._waiting.values():
            yield from lane

    def _fits(self, job: Job, loop: int, more: int = 0) -> bool:
        """Whether a loop has seats for a job, and for `more` images besides. A job alone always fits."""
        taken = more + sum(
            len(ticket.job.seeds)
            for ticket, its_loop in self._running.items()
            if its_loop == loop and ticket.job.model == job.model
        )
        return taken == 0 or taken + len(job.seeds) <= self._seats[job.model]

    def _blocked(self, model: ModelName, newcomer: Job | None = None) -> int:
        """Jobs of a lane that must wait for a seat, a newcomer counted too; the others leave the queue at once."""
        jobs = [ticket.job for ticket in self._waiting[model]]
        if newcomer is not None:
            jobs.append(newcomer)
        more = [0] * self._loops
        for position, one in enumerate(jobs):
            loop = next((loop for loop in range(self._loops) if self._fits(one, loop, more[loop])), None)
            if loop is None:
                return len(jobs) - position
            more[loop] += len(one.seeds)
        return 0

    def _require_room(self, job: Job) -> None:
        behind = self._downstream.waiting if self._downstream is not None else 0
        own = self._blocked(job.model, job)
        if not own and not behind:
            # A seat is free: also for a job that is predicted to be late, since the prediction may be wrong.
            return
        others = sum(self._blocked(model) for model in self._waiting if model != job.model)
        if own + others + behind > self._max_queue:
            raise QueueFull(max(MIN_RETRY_AFTER_SECONDS, self._next_seat(), self._backlog()))
        late = time.monotonic() + self._predicted_wait(job.model) - job.deadline
        if late >= 0:
            raise DeadlineOutOfReach(max(MIN_RETRY_AFTER_SECONDS, late))

    def _backlog(self) -> float:
        return self._downstream.backlog_seconds if self._downstream is not None else 0.0

    def _next_seat(self) -> float:
        """Seconds until the first job on a device is expected to leave it."""
        return min((self._left(ticket) for ticket in self._running), default=0.0)

    def _left(self, ticket: Ticket) -> float:
        # A cancelled job leaves the device within a step.
        if ticket.job.cancelled:
            return 0.0
        model = ticket.job.model
        return self._costs.denoise(model, ticket.rows_left) + self._costs.finish(model, ticket.images_left)

    def _predicted_wait(self, model: ModelName) -> float:
        """The stages overlap, so the busier one counts; a device's time is shared evenly between the endpoints."""
        denoise = dict.fromkeys(self._waiting, 0.0)
        finish = 0.0
        for ticket in (*self._running, *self._tickets()):
            if not ticket.job.cancelled:
                denoise[ticket.job.model] += self._costs.denoise(ticket.job.model, ticket.rows_left)
                finish += self._costs.finish(ticket.job.model, ticket.images_left)
        own = denoise.pop(model)
        return max((own + min(own, sum(denoise.values()))) / self._loops, finish / self._loops, self._backlog())
