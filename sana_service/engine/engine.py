"""The engine's front: submit jobs, watch them, drain and stop. Knows neither HTTP nor what a stage does."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sana_service.engine.admission import Downstream, JobQueue
from sana_service.engine.costs import Costs
from sana_service.engine.job import Artifact, Job
from sana_service.engine.limits import Limits, default_limits
from sana_service.engine.loop import DeviceLoop
from sana_service.engine.stages import Stages

if TYPE_CHECKING:
    from sana_service.models.checkpoint import Models
    from sana_service.safety import SafetyModel


class Engine:
    """One queue and a loop per device; here one device.

    Every accepted job's future ends exactly once, with an artifact or an error. All methods are safe
    for threads and return at once, but for `drain` and `stop`.

    Args:
        models: loaded on the device that the engine is to use.
        safety: classifies pictures; None leaves every picture unflagged.
        nsfw_threshold: probability strictly above which a picture becomes black.
        max_queue: jobs that may wait, besides those that have a seat on the device.
        limits: how much may be on the device; by default what suits it.
        downstream: what artifacts go through afterwards, where that can be congested.

    Raises:
        UnsupportedScheduler: a checkpoint's scheduler cannot be run row by row.
    """

    def __init__(
        self,
        models: Models,
        *,
        safety: SafetyModel | None,
        nsfw_threshold: float,
        max_queue: int,
        limits: Limits | None = None,
        downstream: Downstream | None = None,
    ) -> None:
        costs = Costs()
        limits = limits or default_limits(models)
        self._queue = JobQueue(max_queue, 1, limits.seats, costs, downstream)
        stages = Stages(models, safety, nsfw_threshold)
        self._loops = [DeviceLoop(0, stages, self._queue, costs, limits.batch_cells)]

    def start(self) -> None:
        """Start the device loops and take jobs. Once only."""
        self._queue.open()
        for loop in self._loops:
            loop.start()

    def submit(self, job: Job) -> Future[Artifact]:
        """Queue a job.

        Returns:
            A future that ends with the artifact or an error, mostly an `EngineError`. Its `cancel`
            is the job's: the future still ends by itself, with `JobCancelled`.

        Raises:
            QueueFull: no room, or the jobs before it take longer than its deadline allows.
            NotReady: not started, draining, stopped, or the device is lost.
        """
        return self._queue.put(job)

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return self._queue.waiting

    def position(self, job: Job) -> int | None:
        """Jobs that wait before this one; None where it does not wait: it runs, has ended or never came."""
        return self._queue.position(job)

    @property
    def running(self) -> int:
        """Jobs on a device."""
        return self._queue.running

    @property
    def accepting(self) -> bool:
        """Whether jobs are taken: started, not draining, stopped or lost. A full queue counts as yes."""
        return self._queue.accepting

    @property
    def healthy(self) -> bool:
        """False once a device failed for good: only a new process helps."""
        return not any(loop.lost for loop in self._loops)

    def drain(self, timeout_seconds: float) -> bool:
        """Take no more jobs and wait for those accepted; False where some were left at the timeout."""
        self._queue.close("the engine is draining")
        return self._queue.wait_empty(timeout_seconds)

    def stop(self, timeout_seconds: float = 60.0) -> bool:
        """End every job with `NotReady`, the running one within a step.

        Returns:
            Whether all had ended by the timeout.
        """
        self._queue.abandon("the engine stopped")
        give_up_at = time.monotonic() + timeout_seconds
        for loop in self._loops:
            loop.stop()
        return all(loop.join(give_up_at - time.monotonic()) for loop in self._loops)
