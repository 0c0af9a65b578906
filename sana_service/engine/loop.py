"""One device's loop: a thread that takes jobs from the queue and ends each one's future exactly once."""

from __future__ import annotations

import logging
import threading
import traceback
from typing import TYPE_CHECKING

import torch

from sana_service.engine.admission import JobQueue, Ticket
from sana_service.engine.costs import Costs
from sana_service.engine.errors import EngineError, NotReady, OutOfDeviceMemory
from sana_service.engine.job import Artifact

if TYPE_CHECKING:
    from sana_service.engine.stages import Stages

_LOG = logging.getLogger("sana.engine")


class DeviceLoop:
    """Runs jobs one after another on one device.

    No exception ends the thread. A device that answers every call with an error from then on (CUDA's
    sticky errors) is `lost`: the process cannot recover by itself, so the loop takes no more jobs.

    Args:
        stages: what a job goes through.
        queue: where jobs come from.
        costs: learns from finished jobs.
        device: what `stages` runs on.
    """

    def __init__(self, stages: Stages, queue: JobQueue, costs: Costs, device: torch.device) -> None:
        self._stages = stages
        self._queue = queue
        self._costs = costs
        self._device = device
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sana-{device}", daemon=True)
        self.lost = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the running job within a step; the loop ends once the queue is closed and empty."""
        self._stopping.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread to end; False where it did not in time."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, timeout_seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self.lost and (ticket := self._queue.take()) is not None:
            outcome = self._outcome(ticket)
            if isinstance(outcome, Artifact):
                ticket.future.set_result(outcome)
            else:
                ticket.future.set_exception(outcome)
            # After the future, so that an empty queue means that every future has ended.
            self._queue.done(ticket)
            # Or this frame keeps the pictures in memory until the next job comes.
            del ticket, outcome
        if self.lost:
            self._queue.abandon("the device is lost")

    def _outcome(self, ticket: Ticket) -> Artifact | BaseException:
        """The artifact or the error that the job ends with; holds no tensors of the job."""
        queued = ticket.started_at - ticket.submitted_at
        try:
            artifact = self._stages.run(ticket.job, lambda: self._check(ticket))
        except BaseException as error:
            return self._translate(error)
        self._costs.observe(ticket.job, artifact.timings)
        return Artifact(artifact.pixels, artifact.flagged, {"queue": queued, **artifact.timings})

    def _check(self, ticket: Ticket) -> None:
        """Before each stage and step: should this job go on? Jobs that wait are asked too."""
        if self._stopping.is_set():
            raise NotReady("the engine stopped")
        ticket.require_alive()
        self._queue.sweep()

    def _translate(self, error: BaseException) -> BaseException:
        """What the client is told instead of `error`; frees what the failed job held on the device."""
        _forget_locals(error)
        if isinstance(error, EngineError):
            return error
        if is_out_of_memory(error):
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            told = OutOfDeviceMemory(f"out of memory on {self._device}")
            told.__cause__ = error
            return told
        if isinstance(error, torch.AcceleratorError) and not answers(self._device):
            self.lost = True
            reason = str(error).partition("\n")[0]
            _LOG.critical("%s is lost until the process restarts: %s", self._device, reason)
        return error


def _forget_locals(error: BaseException) -> None:
    """Empty the frames of an error's trace: they hold the job's tensors as long as anyone holds the error."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left.

    Besides the caching allocator's own class there are bare RuntimeErrors, known by their text alone:
    of the CPU allocator, of cuBLAS for its workspace, and of the driver.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def answers(device: torch.device) -> bool:
    """Whether a device still computes: some errors of CUDA end one call, others every later one too."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except RuntimeError:
        return False
