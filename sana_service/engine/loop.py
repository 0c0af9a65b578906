"""One device's loop: four threads that hand a job on from stage to stage, and end its future exactly once.

    queue --> text --> denoise --> decode --> finish (safety, resize) --> future

Different jobs are in different stages at the same time; a job's images are decoded and finished one by one. No
exception ends a thread. A device that answers every call with an error from then on (CUDA's sticky errors) is `lost`:
the process cannot recover it, so the loop takes no more jobs, and those it has begin anew on another device, if any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from sana_service.engine.batcher import Batcher
from sana_service.engine.costs import Costs
from sana_service.engine.denoise import DenoiseRow
from sana_service.engine.errors import DeadlineExceeded, EngineError, JobCancelled, NotReady, OutOfDeviceMemory
from sana_service.engine.faults import answers, forget_locals, is_out_of_memory
from sana_service.engine.flight import Flight, Shot
from sana_service.engine.job import Artifact
from sana_service.engine.work import DeviceWork, Work

if TYPE_CHECKING:
    from sana_service.engine.stages import Stages, StepTime
    from sana_service.engine.ticket import Ticket
    from sana_service.models.names import ModelName

_LOG = logging.getLogger("sana.engine")

_IMAGES_AHEAD = 2
"""Decoded images that may wait to be finished."""


class _Moved(NamedTuple):
    """An image that a step has moved on, once the step has ended.

    Args:
        flight: whose image.
        forwards: passes through the transformer that the step took for it.
        preview: of what the observer is to be shown after it.
    """

    flight: Flight
    forwards: int
    preview: Shot | None


class Tickets(Protocol):
    """Where a loop's jobs come from, and what it tells of them: `JobQueue`, or what stands for it elsewhere."""

    def take(self, loop: int) -> Ticket | None: ...

    def sweep(self) -> None: ...

    def done(self, ticket: Ticket) -> None: ...

    def retire(self, loop: int) -> bool: ...

    def give_back(self, ticket: Ticket) -> bool: ...


class DeviceLoop:
    """Runs jobs on one device.

    Args:
        number: of this loop among those that share the queue.
        stages: what a job goes through.
        queue: where jobs come from.
        costs: learns from what is done.
        cells: most latent cells of one batch by model.
    """

    def __init__(
        self, number: int, stages: Stages, queue: Tickets, costs: Costs, cells: Mapping[ModelName, int]
    ) -> None:
        self._number = number
        self._stages = stages
        self._queue = queue
        self._costs = costs
        self._cells = cells
        self._work = DeviceWork(stages)
        self._batcher: Batcher[DenoiseRow] = Batcher(cells)
        self._launched: deque[list[_Moved]] = deque()
        self._begun: deque[tuple[Flight, list[DenoiseRow]] | None] = deque()
        self._arrived = threading.Condition()
        self._shots: SimpleQueue[Shot | None] = SimpleQueue()
        self._decoded: Queue[tuple[Shot, torch.Tensor, float] | None] = Queue(_IMAGES_AHEAD)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work, name), name=f"sana-{stages.device}-{name}", daemon=True)
            for name, work in (
                ("text", self._text),
                ("denoise", self._denoise),
                ("decode", self._decode),
                ("finish", self._finish),
            )
        ]
        self.lost = False

    @property
    def name(self) -> str:
        """Of the device, such as "cuda:0"."""
        return str(self._stages.device)

    def memory_bytes(self) -> dict[str, int]:
        """What a CUDA device's tensors hold, and the process; empty on a CPU."""
        return self._stages.memory_bytes()

    @property
    def shortages(self) -> Mapping[Work, int]:
        """How often each kind of work ran out of the device's memory."""
        return self._work.shortages

    def prepare(self) -> None:
        """Make ready what most requests need. Blocks."""
        self._stages.prepare(self._cells)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the running jobs within a step; the loop ends once the queue is closed and empty."""
        self._stopping.set()
        self._stages.close()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the threads to end; False where one did not in time."""
        give_up_at = time.monotonic() + timeout_seconds
        started = [thread for thread in self._threads if thread.ident is not None]
        for thread in started:
            thread.join(max(0.0, give_up_at - time.monotonic()))
        return not any(thread.is_alive() for thread in started)

    def _run(self, work: Callable[[], None], name: str) -> None:
        """A stage's thread: without gradients, and on a stream of its own."""
        with torch.inference_mode(), torch.cuda.stream(self._stages.new_stream(urgent=name != "denoise")):
            work()

    # ---- text

    def _text(self) -> None:
        while (ticket := self._queue.take(self._number)) is not None:
            flight = Flight(ticket, self._stages.bin_of(ticket.job))
            try:
                self._check(flight)
                flight.begins("text")
                rows, seconds = self._work.run("text", partial(self._stages.begin, flight))
                flight.spent("text", seconds)
                flight.idles()
            except BaseException as error:
                self._fail(flight, error)
            else:
                self._hand_to_denoise((flight, rows))
                del rows
            # Or this frame keeps the pictures in memory until the next job comes.
            del ticket, flight
        self._hand_to_denoise(None)

    def _hand_to_denoise(self, begun: tuple[Flight, list[DenoiseRow]] | None) -> None:
        with self._arrived:
            self._begun.append(begun)
            self._arrived.notify()

    # ---- denoise

    def _denoise(self) -> None:
        while self._take_arrivals():
            self._queue.sweep()
            self._drop_dead_rows()
            if rows := self._batcher.next_batch():
                self._step(rows)
            del rows
            if not len(self._batcher):
                # Nothing more to launch meanwhile.
                self._settle()
                self._stages.forget_batch()
        self._shots.put(None)

    def _take_arrivals(self) -> bool:
        """Admit what the text stage handed over, waiting where nothing else is to do; False after the last."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._begun or len(self._batcher))
            arrivals = list(self._begun)
            if arrivals and arrivals[-1] is None and len(arrivals) == 1 and not len(self._batcher):
                return False
            self._begun.clear()
            if arrivals and arrivals[-1] is None:
                self._begun.append(arrivals.pop())
        for begun in arrivals:
            assert begun is not None
            flight, rows = begun
            try:
                self._check(flight)
                flight.begins("denoise")
                self._stages.adopt(rows)
                self._batcher.add(rows)
            except BaseException as error:
                self._fail(flight, error)
        return True

    def _drop_dead_rows(self) -> None:
        """Take out the jobs that were cancelled, have expired or failed."""
        for flight in {row.flight for row in self._batcher.rows}:
            try:
                self._check(flight)
            except EngineError as error:
                self._fail(flight, error)
        self._batcher.keep(lambda row: not row.flight.gone)

    def _step(self, rows: list[DenoiseRow]) -> None:
        """Advance a batch by one step. On a GPU that has only begun; what is known to have ended is handed on."""
        key = rows[0].key
        try:
            step = partial(self._stages.step, rows)
            ended, _ = self._work.run("denoise", step, alone_if_short=len(rows) == 1, settle=False)
        except BaseException as error:
            self._step_failed(rows, error)
            return
        self._launched.append([self._moved(row, len(rows)) for row in rows])
        self._batcher.keep(lambda row: not row.done)
        # What it is expected to take: what has ended may be another endpoint's.
        self._batcher.charge(key.model, self._costs.step(key.model, len(rows) * key.forwards))
        self._hand_on(ended)

    def _moved(self, row: DenoiseRow, together: int) -> _Moved:
        """What a step makes of an image; by the time it has ended the row may have begun another."""
        flight, preview = row.flight, None
        flight.batched += together
        if row.done:
            flight.latents[row.image] = row.result
        if row.step in flight.previewed_steps:
            assert row.predicted is not None
            preview = Shot(flight, row.image, row.predicted, flight.previewed_steps.index(row.step))
        return _Moved(flight, row.key.forwards, preview)

    def _settle(self) -> None:
        """Wait for the step that is under way."""
        try:
            self._hand_on(self._stages.settle())
        except BaseException as error:
            self._fail_launched(error)

    def _hand_on(self, ended: Sequence[StepTime]) -> None:
        """Steps have ended, the oldest first."""
        for one in ended:
            self._costs.observe_step(one.model, one.rows, one.seconds)
            for moved in self._launched.popleft():
                # It may have been cancelled meanwhile; then nobody is told any more.
                if not moved.flight.gone:
                    self._stepped(*moved)

    def _fail_launched(self, error: BaseException) -> None:
        """A step that is under way will not end well."""
        while self._launched:
            for moved in self._launched.popleft():
                self._fail(moved.flight, error)

    def _step_failed(self, rows: list[DenoiseRow], error: BaseException) -> None:
        """What fails together is tried apart, so that no job can fail another."""
        if lost := self._is_lost(error):
            self._fail_launched(error)
        if lost or len(rows) == 1:
            for row in rows:
                self._fail(row.flight, error)
            return
        forget_locals(error)
        if is_out_of_memory(error):
            _LOG.warning("out of memory on %s with a batch of %d, going on in halves", self._stages.device, len(rows))
            self._batcher.shrink(rows[0].key, len(rows) // 2)
            self._stages.forget_batch()
            self._stages.release_memory()
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            if alive := [row for row in half if not row.flight.gone]:
                self._step(alive)

    def _stepped(self, flight: Flight, forwards: int, preview: Shot | None) -> None:
        """Tell the observer, show a preview, and hand the job on when its last image is done."""
        flight.steps_done += 1
        flight.ticket.took_rows(forwards)
        flight.tell("denoise")
        if preview is not None:
            self._shots.put(preview)
        if flight.steps_done == flight.steps:
            flight.ends("denoise")
            flight.idles()
            for image, latents in enumerate(flight.latents):
                assert latents is not None
                self._shots.put(Shot(flight, image, latents))

    # ---- decode and finish

    def _decode(self) -> None:
        while (shot := self._shots.get()) is not None:
            self._queue.sweep()
            if shot.flight.gone:
                continue
            try:
                self._check(shot.flight)
                if shot.preview is not None:
                    self._work.run("decode", partial(self._stages.preview, shot))
                else:
                    shot.flight.begins("decode")
                    in_tiles = partial(self._stages.decode, shot, tiled=True)
                    image, seconds = self._work.run("decode", partial(self._stages.decode, shot), last_resort=in_tiles)
                    shot.flight.spent("decode", seconds)
                    self._decoded.put((shot, image, seconds))
                    del image, in_tiles
            except BaseException as error:
                self._fail(shot.flight, error)
            del shot
        self._decoded.put(None)

    def _finish(self) -> None:
        while (decoded := self._decoded.get()) is not None:
            shot, image, decode_seconds = decoded
            flight = shot.flight
            try:
                self._check(flight)
                flight.begins("safety")
                flagged, safety_seconds = self._work.run("finish", partial(self._stages.flag, flight.job, image))
                flight.spent("safety", safety_seconds)
                flight.flagged[shot.image] = flagged
                self._check(flight)
                flight.begins("resize")
                _, resize_seconds = self._work.run("finish", partial(self._stages.resize, shot, image))
                flight.spent("resize", resize_seconds)
            except BaseException as error:
                self._fail(flight, error)
            else:
                self._costs.observe_image(flight.job.model, decode_seconds + safety_seconds + resize_seconds)
                flight.ticket.finished_image()
                if not flight.ticket.images_left:
                    self._complete(flight)
            del decoded, shot, image, flight

    # ---- all stages

    def _check(self, flight: Flight) -> None:
        """Before each stage, step and image: should this job go on?"""
        if self._stopping.is_set() or self.lost:
            raise NotReady("the device is lost" if self.lost else "the engine stopped")
        flight.ticket.require_alive()

    def _fail(self, flight: Flight, error: BaseException) -> None:
        """End a job with an error, which may be told differently; or let another device begin it anew."""
        told = self._translate(error)
        innocent = self.lost and not isinstance(told, JobCancelled | DeadlineExceeded)
        if flight.leave() and not (innocent and self._queue.give_back(flight.ticket)):
            self._close(flight, told)

    def _complete(self, flight: Flight) -> None:
        if flight.leave():
            self._close(flight, flight.artifact())

    def _close(self, flight: Flight, outcome: Artifact | BaseException) -> None:
        flight.ticket.end(outcome)
        # After the future, so that an empty queue means that every future has ended.
        self._queue.done(flight.ticket)

    def _translate(self, error: BaseException) -> BaseException:
        """What the client is told instead of `error`; frees what the failed job held on the device."""
        forget_locals(error)
        if isinstance(error, EngineError):
            return error
        if is_out_of_memory(error):
            self._stages.release_memory()
            told = OutOfDeviceMemory(f"out of memory on {self._stages.device}")
            told.__cause__ = error
            return told
        self._is_lost(error)
        return error

    def _is_lost(self, error: BaseException) -> bool:
        """Whether the device is of no more use; said once, and no more jobs are taken."""
        suspicious = isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
        if not self.lost and suspicious and not answers(self._stages.device):
            reason = str(error).partition("\n")[0]
            _LOG.critical("%s is lost until the process restarts: %s", self._stages.device, reason)
            # First, or a job that is given back could be taken here again.
            self._queue.retire(self._number)
            self.lost = True
        return self.lost
