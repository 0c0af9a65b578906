"""The engine's front: submit jobs, watch them, drain and stop. Knows neither HTTP nor what a stage does."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, get_args

from sana_service.engine.admission import Downstream, JobQueue
from sana_service.engine.costs import Costs
from sana_service.engine.job import Artifact, Job
from sana_service.engine.limits import Limits, default_limits
from sana_service.engine.loop import DeviceLoop
from sana_service.engine.stages import Stages
from sana_service.engine.work import Work

if TYPE_CHECKING:
    from sana_service.models.checkpoint import Models
    from sana_service.models.names import ModelName, Precision
    from sana_service.safety import SafetyModel


class Engine:
    """One queue and a loop per device.

    Every accepted job's future ends exactly once, with an artifact or an error. All methods are safe
    for threads and return at once, but for `drain` and `stop`.

    Args:
        models: one set, or one for each device that the engine is to use.
        safety: classifies pictures, one or one for each device; None leaves every picture unflagged.
        nsfw_threshold: probability strictly above which a picture becomes black.
        max_queue: jobs that may wait, besides those that have a seat on the device.
        limits: how much may be on the device; by default what suits it.
        max_work: megapixel-steps that may wait.
        graph_bytes: what captured CUDA graphs may hold of each device's memory; 0 for none, None for a default by its
            size. Without effect on a CPU.
        precision: of the transformers.
        downstream: what artifacts go through afterwards, where that can be congested.

    Raises:
        UnsupportedScheduler: a checkpoint's scheduler cannot be run row by row.
        UnsupportedPrecision: a device or a checkpoint cannot be run in that precision.
    """

    def __init__(
        self,
        models: Models | Sequence[Models],
        *,
        safety: SafetyModel | Sequence[SafetyModel | None] | None,
        nsfw_threshold: float,
        max_queue: int,
        max_work: float = math.inf,
        limits: Limits | None = None,
        downstream: Downstream | None = None,
        graph_bytes: int | None = None,
        precision: Precision = "exact",
    ) -> None:
        sets = models if isinstance(models, Sequence) else [models]
        safeties = safety if isinstance(safety, Sequence) else [safety] * len(sets)
        costs, limits = Costs(), limits or default_limits(sets[0])
        self._queue = JobQueue(
            max_queue,
            len(sets),
            limits.seats,
            costs,
            downstream,
            max_work=max_work,
            drawn_pixels=limits.drawn_pixels,
        )
        self._loops = [
            DeviceLoop(
                number,
                Stages(one, its_safety, nsfw_threshold, graph_bytes=graph_bytes, precision=precision),
                self._queue,
                costs,
                limits.batch_cells,
            )
            for number, (one, its_safety) in enumerate(zip(sets, safeties, strict=True))
        ]

    def start(self) -> None:
        """Make the devices ready, start their loops and take jobs. Once only; blocks."""
        for loop in self._loops:
            loop.prepare()
        self._queue.open()
        for loop in self._loops:
            loop.start()

    def submit(self, job: Job) -> Future[Artifact]:
        """Queue a job.

        Returns:
            A future that ends with the artifact or an error, mostly an `EngineError`. Its `cancel`
            is the job's: the future still ends by itself, with `JobCancelled`.

        Raises:
            QueueFull: no room, or it is predicted to end after its deadline.
            NotReady: not started, draining, stopped, or the device is lost.
        """
        return self._queue.put(job)

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return self._queue.waiting

    @property
    def queued_work(self) -> float:
        """Megapixel-steps that wait."""
        return self._queue.waiting_work

    @property
    def oldest_queued_seconds(self) -> float:
        """How long the job that came first has waited; 0 where none waits."""
        return self._queue.oldest_seconds

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
        """False once every device failed for good: only a new process helps."""
        return not all(loop.lost for loop in self._loops)

    def predicted_wait(self, model: ModelName) -> float:
        """Seconds until a job of a model that came now would be the first of its endpoint."""
        return self._queue.predicted_wait(model)

    def memory_bytes(self) -> dict[str, dict[str, int]]:
        """Of each CUDA device: what tensors hold (`allocated`), the process holds (`reserved`), and the `peak`."""
        return {str(loop.device): figures for loop in self._loops if (figures := loop.memory_bytes())}

    def shortages(self) -> dict[Work, int]:
        """How often each kind of work ran out of device memory, whether or not its job survived it."""
        each = [loop.shortages for loop in self._loops]
        return {work: sum(one[work] for one in each) for work in get_args(Work)}

    @property
    def devices(self) -> int:
        """Devices that the engine was given."""
        return len(self._loops)

    @property
    def devices_lost(self) -> int:
        """Devices that failed for good and are of no more use to this process."""
        return sum(loop.lost for loop in self._loops)

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
