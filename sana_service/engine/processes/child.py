"""A device's process: `python -m sana_service.engine.processes.child SOCKET MEMORY`, started by `DeviceProcess`.

Loads what the specification says, says `Ready` or `Refused`, and runs a `DeviceLoop` whose queue is the socket. It ends
when it is told to, or when the process with the queue is gone, at once then. Signals are that process's business.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
import weakref
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from sana_service.engine.costs import Costs
from sana_service.engine.job import Artifact
from sana_service.engine.loop import DeviceLoop
from sana_service.engine.observer import Preview, Progress
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
from sana_service.engine.processes.pixels import PixelMap
from sana_service.engine.ticket import JobFuture, Ticket

if TYPE_CHECKING:
    from sana_service.engine.processes.device import DeviceSpec
    from sana_service.models.names import ModelName

_FACTS_SECONDS = 1.0
_JOIN_SECONDS = 60.0
_GONE = 1
"""Exit code where the process with the queue is gone, or cannot be spoken with."""


class Outbox:
    """Sends messages from a thread of its own: who has something to tell never waits for the socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        self._messages.put(message)

    def close(self) -> None:
        """Send what is left. Blocks."""
        self._messages.put(None)
        self._thread.join()

    def _send(self) -> None:
        while True:
            messages: list[Message | None] = [self._messages.get()]
            # What has come together is sent together.
            try:
                while True:
                    messages.append(self._messages.get_nowait())
            except Empty:
                pass
            if told := [message for message in messages if message is not None]:
                try:
                    self._connection.send(told)
                except Exception as error:
                    _end_at_once(error)
            if len(told) < len(messages):
                return


class TellingCosts(Costs):
    """Costs that are told on, for the queue's predictions."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def observe_step(self, model: ModelName, rows: int, seconds: float) -> None:
        super().observe_step(model, rows, seconds)
        self._outbox.put(StepTaken(model, rows, seconds))

    def observe_image(self, model: ModelName, seconds: float) -> None:
        super().observe_image(model, seconds)
        self._outbox.put(ImageTaken(model, seconds))


@dataclass(frozen=True)
class Relay:
    """A job's observer, for one that is elsewhere."""

    number: int
    previews: int
    outbox: Outbox

    def progress(self, progress: Progress) -> None:
        self.outbox.put(Told(self.number, progress))

    def preview(self, preview: Preview) -> None:
        self.outbox.put(Told(self.number, preview))


class Order(Ticket):
    """A ticket whose other half is in the queue's process.

    Args:
        begin: what came.
        memory: with the block of its pixels.
        outbox: where what becomes of it is told.
    """

    def __init__(self, begin: Begin, memory: PixelMap, outbox: Outbox) -> None:
        job = replace(
            begin.job,
            observer=Relay(begin.number, begin.previews, outbox) if begin.watched else None,
            cancellation=memory.cancellation(begin.offset),
        )
        pixels = memory.pixels(begin.offset, job.pixel_shape)
        super().__init__(job, JobFuture(job), begin.submitted_at, pixels=pixels)
        self.number = begin.number
        self._outbox = outbox
        # Not with the job's end: another stage may still be writing.
        weakref.finalize(pixels.base, outbox.put, LetGo(begin.offset)).atexit = False

    def took_rows(self, rows: int) -> None:
        super().took_rows(rows)
        self._outbox.put(Left(self.number, self.rows_left, self.images_left))

    def finished_image(self) -> None:
        super().finished_image()
        if self.images_left:
            self._outbox.put(Left(self.number, self.rows_left, self.images_left))

    def end(self, outcome: Artifact | BaseException) -> bool:
        # The future is nobody's here.
        first = self._once.acquire(blocking=False)
        if first:
            self._outbox.put(_ended(self.number, outcome))
        return first


def _ended(number: int, outcome: Artifact | BaseException) -> Drawn | Failed:
    if isinstance(outcome, Artifact):
        return Drawn(number, outcome.flagged, outcome.timings, outcome.batch_images)
    trace = "".join(traceback.format_exception(outcome))
    return Failed(number, type(outcome).__name__, str(outcome), trace)


class Inbox:
    """The queue as the loop sees it: jobs that came, and what it says of them.

    What waits and who may have it is decided elsewhere: all that comes here is taken.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._orders: SimpleQueue[Order | None] = SimpleQueue()

    def put(self, order: Order | None) -> None:
        """A job for the loop; None after the last."""
        self._orders.put(order)

    def take(self, loop: int) -> Ticket | None:
        return self._orders.get()

    def sweep(self) -> None: ...

    def done(self, ticket: Ticket) -> None: ...

    def retire(self, loop: int) -> bool:
        self._outbox.put(Lost())
        return True

    def give_back(self, ticket: Ticket) -> bool:
        """Asked for; whether it may is not known here, so the loop ends the job too."""
        assert isinstance(ticket, Order)
        self._outbox.put(GivenBack(ticket.number))
        return False


def _end_at_once(error: Exception) -> NoReturn:
    """The process with the queue is gone, or cannot be spoken with: it sees that this one ends, and loses no job."""
    if not isinstance(error, EOFError | OSError):
        traceback.print_exception(error)
    os._exit(_GONE)


def serve(connection: Connection, memory: PixelMap) -> None:
    """Be a device until told to stop."""
    spec: DeviceSpec = connection.recv()
    outbox = Outbox(connection)
    inbox = Inbox(outbox)
    stopped = threading.Event()

    def receive() -> None:
        while True:
            try:
                message = connection.recv()
                if isinstance(message, Stop):
                    stopped.set()
                    return
                inbox.put(Order(message, memory, outbox))
                del message
            except Exception as error:
                _end_at_once(error)

    threading.Thread(target=receive, name="inbox", daemon=True).start()
    try:
        spec.configure()
        device = spec.build()
        loop = DeviceLoop(0, device.stages, inbox, TellingCosts(outbox), device.limits.batch_cells)
        loop.prepare()
    except Exception as error:
        reason = str(error) or type(error).__name__
        outbox.put(Refused(" ".join(reason.split())))
        outbox.close()
        raise SystemExit(1) from error
    gc.collect()
    gc.freeze()
    outbox.put(Ready(device.names, device.limits))
    loop.start()
    while not stopped.wait(_FACTS_SECONDS):
        outbox.put(Facts(loop.memory_bytes(), dict(loop.shortages)))
    loop.stop()
    inbox.put(None)
    loop.join(_JOIN_SECONDS)
    outbox.close()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection, memory = int(sys.argv[1]), int(sys.argv[2])
    serve(Connection(connection), PixelMap(memory))


if __name__ == "__main__":
    main()
