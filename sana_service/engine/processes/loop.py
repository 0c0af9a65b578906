"""Stands where a `DeviceLoop` stands for a device of this process: takes jobs for a device's process, and ends them.

Each ticket ends exactly once. A process that ends by itself is a device that is lost: its jobs begin anew on another
one, if any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, get_args

from sana_service.engine.errors import (
    DeadlineExceeded,
    EngineError,
    JobCancelled,
    NotFinite,
    NotReady,
    OutOfDeviceMemory,
)
from sana_service.engine.job import Artifact
from sana_service.engine.observer import Progress
from sana_service.engine.processes.messages import (
    Begin,
    Drawn,
    Facts,
    Failed,
    GivenBack,
    ImageTaken,
    Left,
    LetGo,
    Lost,
    Message,
    StepTaken,
    Stop,
    Told,
)
from sana_service.engine.work import Work

if TYPE_CHECKING:
    import numpy as np

    from sana_service.engine.admission import JobQueue
    from sana_service.engine.costs import Costs
    from sana_service.engine.observer import Preview
    from sana_service.engine.processes.device import DeviceProcess
    from sana_service.engine.processes.pixels import SharedFlag
    from sana_service.engine.ticket import Ticket

_LOG = logging.getLogger("sana.engine")

_ERRORS: dict[str, type[EngineError]] = {
    error.__name__: error for error in (DeadlineExceeded, JobCancelled, NotFinite, NotReady, OutOfDeviceMemory)
}
"""Those that a job may end with on a device."""

_END_SECONDS = 1.0
"""For a thread to see that its process has ended."""


@dataclass(frozen=True, eq=False)
class _Held:
    """A ticket that the device has, and where its pixels go."""

    ticket: Ticket
    pixels: np.ndarray
    cancellation: SharedFlag


class ProcessLoop:
    """Hands jobs to a device's process, and ends them as it says.

    Args:
        process: ready.
        number: of this loop among those that share the queue.
        queue: where jobs come from.
        costs: learns from what is done.
    """

    def __init__(self, process: DeviceProcess, number: int, queue: JobQueue, costs: Costs) -> None:
        self.name = process.name
        self._process = process
        self._number = number
        self._queue = queue
        self._costs = costs
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._begun = 0
        self._facts = Facts({}, dict.fromkeys(get_args(Work), 0))
        self._stopping = threading.Event()
        self._over = False
        self._sending = threading.Lock()
        self._threads = [
            threading.Thread(target=work, name=f"sana-{self.name}-{name}", daemon=True)
            for name, work in (("begin", self._begin_all), ("listen", self._listen))
        ]
        self.lost = False

    def memory_bytes(self) -> dict[str, int]:
        """What the device's tensors hold, and its process, as it last said."""
        return self._facts.memory_bytes

    @property
    def shortages(self) -> Mapping[Work, int]:
        """How often each kind of work ran out of the device's memory."""
        return self._facts.shortages

    def prepare(self) -> None:
        """The process is ready, or it would not be here."""
        self._process.wait_ready()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the running jobs within a step, and the process."""
        self._stopping.set()
        self._send(Stop())

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the process to end; it is killed, and False, where it did not in time."""
        give_up_at = time.monotonic() + timeout_seconds
        ended = self._process.join(timeout_seconds)
        started = [thread for thread in self._threads if thread.ident is not None]
        for thread in started:
            thread.join(max(_END_SECONDS, give_up_at - time.monotonic()))
        return ended and not any(thread.is_alive() for thread in started)

    # ---- to the device

    def _begin_all(self) -> None:
        while (ticket := self._queue.take(self._number)) is not None:
            number, self._begun = self._begun, self._begun + 1
            try:
                self._begin(number, ticket)
            except Exception as error:
                self._release(number)
                ticket.end(OutOfDeviceMemory(str(error)) if isinstance(error, MemoryError) else error)
                self._queue.done(ticket)
            # Or this frame keeps the pictures in memory until the next job comes.
            del ticket

    def _begin(self, number: int, ticket: Ticket) -> None:
        job, memory = ticket.job, self._process.memory
        offset, pixels = memory.take(job.pixel_shape)
        with self._lock:
            self._held[number] = _Held(ticket, pixels, memory.cancellation(offset))
        job.when_cancelled(partial(self._cancel, number))
        observer = job.observer
        previews = observer.previews if observer is not None else 0
        self._send(Begin(number, job.order(), ticket.submitted_at, offset, observer is not None, previews))
        if self._over:
            # It may have come after the others were given back.
            self._give_back_all()

    def _cancel(self, number: int) -> None:
        with self._lock:
            # Or the block may be another job's by now.
            if number in self._held:
                self._held[number].cancellation.set()

    def _send(self, message: Begin | Stop) -> None:
        try:
            with self._sending:
                self._process.connection.send(message)
        except OSError:
            _LOG.debug("%s has gone, and is not told", self.name)  # the listening thread says so

    # ---- from the device

    def _listen(self) -> None:
        try:
            while True:
                for message in self._process.connection.recv():
                    self._hear(message)
                self._queue.sweep()
        except (EOFError, OSError):
            _LOG.debug("%s says nothing more", self.name)
        except Exception:
            _LOG.exception("what %s says cannot be followed", self.name)
            self._process.kill()
        self._ended()

    def _hear(self, message: Message) -> None:
        match message:
            case StepTaken():
                self._costs.observe_step(*message)
            case ImageTaken():
                self._costs.observe_image(*message)
            case LetGo(offset):
                self._process.memory.let_go(offset)
            case Facts():
                self._facts = message
            case Lost():
                self._lose("it answers nothing any more")
            case Left() | Told() | Drawn() | Failed() | GivenBack():
                # A job that was given back meanwhile is another device's.
                if held := self._held.get(message.number):
                    self._hear_of(held, message)

    def _hear_of(self, held: _Held, message: Left | Told | Drawn | Failed | GivenBack) -> None:
        match message:
            case Left(_, rows, images):
                held.ticket.rows_left, held.ticket.images_left = rows, images
            case Told(number, what):
                if (fault := self._tell(held.ticket, what)) is not None:
                    # Its own job ends, and no other; the device stops drawing it.
                    held.cancellation.set()
                    self._release(number)
                    held.ticket.end(fault)
                    self._queue.done(held.ticket)
            case Drawn() | Failed():
                self._release(message.number)
                held.ticket.end(_outcome(message, held.pixels))
                self._queue.done(held.ticket)
            case GivenBack(number):
                if self._queue.give_back(held.ticket):
                    self._release(number)

    def _tell(self, ticket: Ticket, what: Progress | Preview) -> Exception | None:
        """Tell a job's observer; what it raised, if it did."""
        observer = ticket.job.observer
        assert observer is not None
        try:
            if isinstance(what, Progress):
                observer.progress(what)
            else:
                observer.preview(what)
        except Exception as error:
            _LOG.exception("the observer of request %s failed", ticket.job.request_id)
            # The frames of its trace would hold the job's pixels as long as anyone holds the error.
            return error.with_traceback(None)
        return None

    def _release(self, number: int) -> _Held | None:
        """What was held under a number is the device's no more; None where it is not."""
        with self._lock:
            return self._held.pop(number, None)

    def _lose(self, why: str) -> None:
        if not self.lost:
            _LOG.critical("%s is lost until the service restarts: %s", self.name, why)
            # First, or a job that is given back could be taken here again.
            self._queue.retire(self._number)
            self.lost = True

    def _ended(self) -> None:
        """The process has ended: it was told to, or it died."""
        if not self._stopping.is_set():
            # One that says nothing more is of no use, even if it goes on.
            self._process.join(_END_SECONDS)
            self._lose(f"its process ended, {self._process.ending()}")
        self._over = True
        self._give_back_all()

    def _give_back_all(self) -> None:
        for number in tuple(self._held):
            held = self._release(number)
            if held is None:
                continue
            if self._stopping.is_set() or not self._queue.give_back(held.ticket):
                held.ticket.end(NotReady("the engine stopped" if self._stopping.is_set() else "the device is lost"))
                self._queue.done(held.ticket)


class RemoteError(Exception):
    """What a device's process failed with, or where it did; not a class that is known here."""


def _outcome(message: Drawn | Failed, pixels: np.ndarray) -> Artifact | BaseException:
    if isinstance(message, Drawn):
        return Artifact(pixels, message.flagged, message.timings, message.batch_images)
    known = _ERRORS.get(message.kind)
    error = RemoteError(f"{message.kind}: {message.text}") if known is None else known(message.text)
    error.__cause__ = RemoteError(f"in the device's process\n{message.trace}")
    return error
