"""The queue before the devices: bounded, a lane for each endpoint, shared by all device loops. Pure Python.

A lane is first in, first out, and a device loop takes from it while it has seats of that endpoint: so many images may
be on one device, from text to pixels. One endpoint's full seats never hold up the other.

Room is counted in jobs and in work: what waits holds requests open, and it is time that they wait for. A deadline that
the jobs before a request and the request itself are predicted to miss is refused at once; only an idle device takes any
job, since no prediction would ever be put right otherwise.

A ticket is in the queue or in one loop's hands, never in both; whoever takes it out ends its future. Futures end
outside the lock, since their callbacks may submit again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sana_service.engine.costs import Costs, megapixel_steps
from sana_service.engine.errors import DeadlineExceeded, DeadlineOutOfReach, JobCancelled, NotReady, QueueFull
from sana_service.engine.job import Job
from sana_service.engine.ticket import JobFuture, Ticket
from sana_service.models.names import ModelName

MIN_RETRY_AFTER_SECONDS = 1.0

_ERRORS, _SHARE = 2.0, 0.05
"""What a deadline must leave over: mean errors of the prediction, and at least this share of the predicted time. Under
overload every job that is let in ends close to its deadline, so a moment's stall would cost all that wait.
"""

_SWEEP_SECONDS = 0.02
"""How often the loops look for waiting jobs that are of no more use."""


class Downstream(Protocol):
    """What artifacts go through after the engine: encoding. Its backlog counts when a job is admitted."""

    @property
    def waiting(self) -> int:
        """Jobs whose turn has not come."""

    @property
    def backlog_seconds(self) -> float:
        """Predicted time until a job that came now would have its turn."""


@dataclass(eq=False)
class _Desk:
    """One loop's end of the queue: who sits there, and how the loop is woken."""

    wake: threading.Condition
    tickets: dict[Ticket, float] = field(default_factory=dict)
    images: Counter[ModelName] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def load(self) -> tuple[float, int]:
        """Predicted seconds of what was taken, and its images for as long as nothing can be predicted."""
        return self.seconds, self.images.total()

    def seat(self, ticket: Ticket, seconds: float) -> None:
        self.tickets[ticket] = seconds
        self.images[ticket.job.model] += len(ticket.job.seeds)
        self.seconds += seconds

    def leave(self, ticket: Ticket) -> None:
        if ticket in self.tickets:
            seconds = self.tickets.pop(ticket)
            self.images[ticket.job.model] -= len(ticket.job.seeds)
            self.seconds = self.seconds - seconds if self.tickets else 0.0


class JobQueue:
    """Admits jobs and hands them out, each to the device loop that will be done first.

    Args:
        max_queue: jobs that may wait; those that have a seat on a device do not count.
        loops: how many device loops take from here; they are numbered from 0.
        seats: images of each model that may be on one device.
        costs: predicts service times.
        downstream: what comes after the engine, if anything that can be congested.
        max_work: megapixel-steps that may wait; a job that would wait alone always may.
        drawn_pixels: of one picture of each model, as it is denoised.
    """

    def __init__(
        self,
        max_queue: int,
        loops: int,
        seats: Mapping[ModelName, int],
        costs: Costs,
        downstream: Downstream | None = None,
        *,
        max_work: float = math.inf,
        drawn_pixels: Mapping[ModelName, int] | None = None,
    ) -> None:
        self._max_queue = max_queue
        self._max_work = max_work
        self._drawn_pixels = dict(drawn_pixels or dict.fromkeys(seats, 2**20))
        self._seats = dict(seats)
        self._costs = costs
        self._downstream = downstream
        self._lock = threading.Lock()
        self._emptied = threading.Condition(self._lock)
        self._desks = {number: _Desk(threading.Condition(self._lock)) for number in range(loops)}
        self._open_desks = dict(self._desks)
        self._waiting: dict[ModelName, deque[Ticket]] = {model: deque() for model in seats}
        self._swept_at = 0.0
        self._refusal: str | None = "the engine has not started"

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return sum(len(desk.tickets) for desk in self._desks.values())

    @property
    def waiting_work(self) -> float:
        """Megapixel-steps that wait."""
        with self._lock:
            return sum(self._work(ticket.job) for ticket in self._tickets())

    @property
    def oldest_seconds(self) -> float:
        """How long the job that came first has waited; 0 where none waits."""
        with self._lock:
            came = min((ticket.submitted_at for ticket in self._tickets()), default=None)
        return 0.0 if came is None else time.monotonic() - came

    def position(self, job: Job) -> int | None:
        """Jobs of its endpoint that wait before this one; None where it does not wait."""
        with self._lock:
            return next((i for i, ticket in enumerate(self._waiting[job.model]) if ticket.job is job), None)

    @property
    def accepting(self) -> bool:
        return self._refusal is None

    def open(self) -> None:
        """Take jobs from now on."""
        with self._lock:
            self._refusal = None

    def close(self, why: str) -> None:
        """Take no more jobs; those here are still handed out."""
        with self._lock:
            self._refusal = why
            self._wake_all()

    def put(self, job: Job) -> JobFuture:
        """Admit a job.

        Raises:
            NotReady: the queue is not open.
            QueueFull: no room, or (`DeadlineOutOfReach`) it is predicted to end after its deadline.
        """
        try:
            return self._put(job)
        except QueueFull:
            self.sweep(at_once=True)
            return self._put(job)

    def _put(self, job: Job) -> JobFuture:
        with self._lock:
            if self._refusal is not None:
                raise NotReady(self._refusal)
            expected = self._require_room(job)
            ticket = Ticket(job, JobFuture(job), time.monotonic(), expected / self._costs.stretch)
            self._waiting[job.model].append(ticket)
            self._wake_takers()
        return ticket.future

    def take(self, loop: int) -> Ticket | None:
        """The next job for a loop, waiting for one; None once the queue is closed and empty, or the loop retired."""
        with self._lock:
            while loop in self._open_desks:
                ready = [lane[0] for lane in self._waiting.values() if lane and self._desk_for(lane[0].job) == loop]
                if ready:
                    ticket = min(ready, key=lambda ticket: ticket.submitted_at)
                    self._waiting[ticket.job.model].popleft()
                    ticket.started_at = time.monotonic()
                    self._desks[loop].seat(ticket, self._costs.predict(ticket.job))
                    self._wake_takers()
                    return ticket
                # A job that runs elsewhere may yet be given back for this loop to take.
                if self._refusal is not None and not self.waiting and self.running == len(self._desks[loop].tickets):
                    return None
                self._desks[loop].wake.wait()
            return None

    def done(self, ticket: Ticket) -> None:
        """The job has left its loop."""
        self._learn(ticket)
        with self._lock:
            self._leave_desk(ticket)
            if self._refusal is not None and not self.waiting and not self.running:
                self._wake_all()
            else:
                self._wake_takers()

    def retire(self, loop: int) -> bool:
        """A loop's device is lost: nothing more goes there. False where it was the last; then all waiting jobs end."""
        with self._lock:
            self._open_desks.pop(loop, None)
            self._wake_all()
        if not self._open_desks:
            self.abandon("the device is lost")
        return bool(self._open_desks)

    def give_back(self, ticket: Ticket) -> bool:
        """A job of a lost device begins anew on another one, before those that wait. Once only: False then."""
        with self._lock:
            if ticket.moved or not self._open_desks:
                return False
            self._leave_desk(ticket)
            ticket.restart()
            self._waiting[ticket.job.model].appendleft(ticket)
            self._wake_takers()
        return True

    def sweep(self, *, at_once: bool = False) -> None:
        """End the waiting jobs that were cancelled or expired, so that they hold no room.

        Args:
            at_once: also where that was done a moment ago.
        """
        now = time.monotonic()
        if not at_once and now < self._swept_at + _SWEEP_SECONDS:
            return
        dead: list[tuple[Ticket, Exception]] = []
        with self._lock:
            self._swept_at = now
            for ticket in tuple(self._tickets()):
                try:
                    ticket.require_alive()
                except (JobCancelled, DeadlineExceeded) as error:
                    self._waiting[ticket.job.model].remove(ticket)
                    dead.append((ticket, error))
            if dead:
                self._wake_all()
        for ticket, reason in dead:
            self._learn(ticket)
            ticket.end(reason)

    def abandon(self, why: str) -> None:
        """Close, and end every waiting job with `NotReady`."""
        with self._lock:
            self._refusal = why
            abandoned = tuple(self._tickets())
            for lane in self._waiting.values():
                lane.clear()
            self._wake_all()
        for ticket in abandoned:
            ticket.end(NotReady(why))

    def wait_empty(self, timeout_seconds: float) -> bool:
        """Wait until nothing waits or runs; False where that took too long."""
        with self._lock:
            return self._emptied.wait_for(lambda: not self.waiting and not self.running, timeout_seconds)

    def predicted_wait(self, model: ModelName) -> float:
        """Seconds until a job of a model that came now would be the first of its endpoint."""
        with self._lock:
            return self._predicted_wait(model)

    def _tickets(self) -> Iterator[Ticket]:
        for lane in self._waiting.values():
            yield from lane

    def _running(self) -> Iterator[Ticket]:
        for desk in self._desks.values():
            yield from desk.tickets

    def _leave_desk(self, ticket: Ticket) -> None:
        for desk in self._desks.values():
            desk.leave(ticket)

    def _wake_takers(self) -> None:
        """Wake the loops that the next jobs are for, and no others."""
        for lane in self._waiting.values():
            number = self._desk_for(lane[0].job) if lane else None
            if number is not None:
                self._desks[number].wake.notify()
        if not self.waiting and not self.running:
            self._emptied.notify_all()

    def _wake_all(self) -> None:
        for desk in self._desks.values():
            desk.wake.notify()
        self._emptied.notify_all()

    def _desk_for(self, job: Job) -> int | None:
        """The loop with seats for a job that has the least to do."""
        free = [number for number, desk in self._open_desks.items() if self._fits(job, desk)]
        return min(free, key=lambda number: self._desks[number].load, default=None)

    def _fits(self, job: Job, desk: _Desk, more: int = 0) -> bool:
        """Whether a loop has seats for a job, and for `more` images besides. A job alone always fits."""
        taken = more + desk.images[job.model]
        return taken == 0 or taken + len(job.seeds) <= self._seats[job.model]

    def _blocked(self, model: ModelName, newcomer: Job | None = None) -> Sequence[Job]:
        """Jobs of a lane that must wait for a seat, a newcomer too; the others leave the queue at once."""
        jobs = [ticket.job for ticket in self._waiting[model]]
        if newcomer is not None:
            jobs.append(newcomer)
        more = dict.fromkeys(self._open_desks, 0)
        for position, one in enumerate(jobs):
            desks = self._open_desks.items()
            number = next((number for number, desk in desks if self._fits(one, desk, more[number])), None)
            if number is None:
                return jobs[position:]
            more[number] += len(one.seeds)
        return ()

    def _learn(self, ticket: Ticket) -> None:
        """A job that ended late shows by how much predictions are wrong; one that was cancelled shows nothing.

        What an expired one had left to do counts: or predictions would come to rest where all end at their deadline.
        """
        if not ticket.job.cancelled and not ticket.moved:
            taken = time.monotonic() - ticket.submitted_at + self._left(ticket)
            self._costs.observe_job(ticket.expected_seconds, taken)

    def _require_room(self, job: Job) -> float:
        """Seconds until the job's end, as predicted; raises where it may not come in."""
        behind = self._downstream.waiting if self._downstream is not None else 0
        blocked = {model: self._blocked(model, job if model == job.model else None) for model in self._waiting}
        if blocked[job.model] or behind:
            jobs = [one for lane in blocked.values() for one in lane]
            excess = sum(map(self._work, jobs)) - self._max_work if len(jobs) > 1 else 0.0
            if len(jobs) + behind > self._max_queue or excess > 0:
                raise QueueFull(max(MIN_RETRY_AFTER_SECONDS, self._room_in(excess), self._backlog()))
        wait = self._predicted_wait(job.model)
        expected = wait + self._costs.predict(job)
        # A mean would let in as many that end too late as in time: a full queue ends every job at its deadline.
        margin = min(expected, max(_ERRORS * self._costs.error, _SHARE * expected))
        late = time.monotonic() + expected + margin - job.deadline
        idle = not self.running and not self.waiting and not behind
        if late >= 0 and not idle:
            # One that takes longer than it has is for an idle device alone.
            raise DeadlineOutOfReach(max(MIN_RETRY_AFTER_SECONDS, min(late, wait)))
        return expected

    def _work(self, job: Job) -> float:
        return megapixel_steps(job, self._drawn_pixels[job.model])

    def _backlog(self) -> float:
        return self._downstream.backlog_seconds if self._downstream is not None else 0.0

    def _room_in(self, excess: float) -> float:
        """Seconds until a seat is free, and so much work has left the queue."""
        seconds = self._next_seat()
        for ticket in sorted(self._tickets(), key=lambda ticket: ticket.submitted_at):
            excess -= self._work(ticket.job)
            if excess <= 0:
                break
            seconds += self._costs.predict(ticket.job) / max(1, len(self._open_desks))
        return seconds

    def _next_seat(self) -> float:
        """Seconds until the first job on a device is expected to leave it."""
        return min((self._left(ticket) for ticket in self._running()), default=0.0)

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
        for ticket in (*self._running(), *self._tickets()):
            if not ticket.job.cancelled:
                denoise[ticket.job.model] += self._costs.denoise(ticket.job.model, ticket.rows_left)
                finish += self._costs.finish(ticket.job.model, ticket.images_left)
        own, loops = denoise.pop(model), max(1, len(self._open_desks))
        return max((own + min(own, sum(denoise.values()))) / loops, finish / loops, self._backlog())
