"""A device in a process of its own, as the process with the queue sees it.

`DeviceProcess` is the process, `ProcessLoop` stands where a `DeviceLoop` stands for a device of this process: it takes
jobs from the queue for the device, and ends each ticket exactly once. A process that ends by itself is a device that is
lost: its jobs begin anew on another one, if any.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol, get_args

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
    Ready,
    Refused,
    StepTaken,
    Stop,
    Told,
)
from sana_service.engine.processes.pixels import PixelMemory
from sana_service.engine.work import Work

if TYPE_CHECKING:
    import numpy as np

    from sana_service.engine.admission import JobQueue
    from sana_service.engine.costs import Costs
    from sana_service.engine.device import LocalDevice
    from sana_service.engine.limits import Limits
    from sana_service.engine.processes.pixels import SharedFlag
    from sana_service.engine.ticket import Ticket
    from sana_service.models.names import ModelName

_LOG = logging.getLogger("sana.engine")

_ERRORS: dict[str, type[EngineError]] = {
    error.__name__: error for error in (DeadlineExceeded, JobCancelled, NotFinite, NotReady, OutOfDeviceMemory)
}
"""Those that a job may end with on a device."""

_END_SECONDS = 1.0
"""For a thread to see that its process has ended."""

_CHILD = "sana_service.engine.processes.child"


class DeviceSpec(Protocol):
    """How a device is built; pickled, and called in the device's own process."""

    def configure(self) -> None:
        """Set up the process itself, such as its log; called first."""

    def build(self) -> LocalDevice:
        """Load the models. Blocks. What it raises is told in one line and ends the process."""


class DeviceError(Exception):
    """A device's process cannot be used; the message is one line."""


class DeviceProcess:
    """A process that has begun to load its device; a `Device`.

    Args:
        name: of the device, such as "cuda:0".
        spec: how it is built.
    """

    def __init__(self, name: str, spec: DeviceSpec) -> None:
        self.name = name
        # Its own: to write where another process has written takes as long as to ask the system for memory.
        self.memory = PixelMemory()
        self._ready: Ready | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            handles = (theirs.fileno(), self.memory.fd)
            self._process = subprocess.Popen(
                [sys.executable, "-m", _CHILD, *map(str, handles)],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())
        self.connection.send(spec)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> Ready:
        """What it says once it is loaded; blocks until then.

        Raises:
            DeviceError: it cannot be used.
        """
        if self._ready is None:
            try:
                (said,) = self.connection.recv()
            except (EOFError, OSError) as error:
                raise DeviceError(f"the process of {self.name} ended while it loaded, {self.ending()}") from error
            if isinstance(said, Refused):
                raise DeviceError(said.reason)
            assert isinstance(said, Ready)
            self._ready = said
        return self._ready

    @property
    def limits(self) -> Limits:
        """Of the device; blocks until it is loaded."""
        return self.wait_ready().limits

    @property
    def names(self) -> Mapping[ModelName, str]:
        """What each model is called in an image's metadata; blocks until it is loaded."""
        return self.wait_ready().names

    def loop(self, number: int, queue: JobQueue, costs: Costs) -> ProcessLoop:
        return ProcessLoop(self, number, queue, costs)

    def ending(self) -> str:
        """How it ended, in words; blocks until it has."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def join(self, timeout_seconds: float) -> bool:
        """Wait for its end; False, and it is killed, where that takes too long."""
        try:
            self._process.wait(max(0.0, timeout_seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def start_devices(specs: Mapping[str, DeviceSpec]) -> list[DeviceProcess]:
    """A process for each device, all loaded at the same time. Blocks.

    Args:
        specs: by the device's name.

    Raises:
        DeviceError: a device cannot be used; no process is left then.
    """
    processes = [DeviceProcess(name, spec) for name, spec in specs.items()]
    loading = {process.connection: process for process in processes}
    try:
        while loading:
            # Whoever speaks first: one may load for minutes while another has failed.
            for said in wait(list(loading)):
                loading.pop(said).wait_ready()  # type: ignore[call-overload]
    except DeviceError:
        for process in processes:
            process.kill()
        raise
    return processes


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
            try:
                self._begin(ticket)
            except MemoryError as error:
                ticket.end(OutOfDeviceMemory(str(error)))
                self._queue.done(ticket)
            # Or this frame keeps the pictures in memory until the next job comes.
            del ticket

    def _begin(self, ticket: Ticket) -> None:
        job, memory = ticket.job, self._process.memory
        offset, pixels = memory.take(job.pixel_shape)
        number, self._begun = self._begun, self._begun + 1
        with self._lock:
            self._held[number] = _Held(ticket, pixels, memory.cancellation(offset))
        job.when_cancelled(partial(self._cancel, number))
        observer = job.observer
        previews = observer.previews if observer is not None else 0
        self._send(Begin(number, job.order(), ticket.submitted_at, offset, observer is not None, previews))
        if self.lost:
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
            case Told(_, what):
                self._tell(held.ticket, what)
            case Drawn() | Failed():
                self._release(message.number)
                held.ticket.end(_outcome(message, held.pixels))
                self._queue.done(held.ticket)
            case GivenBack(number):
                if self._queue.give_back(held.ticket):
                    self._release(number)

    def _tell(self, ticket: Ticket, what: Any) -> None:
        observer = ticket.job.observer
        assert observer is not None
        if isinstance(what, Progress):
            observer.progress(what)
        else:
            observer.preview(what)

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
        ending = self._process.ending()
        if not self._stopping.is_set():
            self._lose(f"its process ended, {ending}")
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
