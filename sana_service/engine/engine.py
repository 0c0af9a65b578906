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
from sana_service.engine.work import Work

if TYPE_CHECKING:
    from sana_service.engine.device import Device
    from sana_service.models.names import ModelName


class Engine:
    """One queue and a loop per device.

    Every accepted job's future ends exactly once, with an artifact or an error. All methods are safe
    for threads and return at once, but for `drain` and `stop`.

    Args:
        devices: which are alike: the first one's limits are everyone's.
        max_queue: jobs that may wait, besides those that have a seat on a device.
        max_work: megapixel-steps that may wait.
        downstream: what artifacts go through afterwards, where that can be congested.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        max_queue: int,
        max_work: float = math.inf,
        downstream: Downstream | None = None,
    ) -> None:
        costs, limits = Costs(), devices[0].limits
        self._queue = JobQueue(
            max_queue,
            len(devices),
            limits.seats,
            costs,
            downstream,
            max_work=max_work,
            drawn_pixels=limits.drawn_pixels,
        )
        self._loops = [device.loop(number, self._queue, costs) for number, device in enumerate(devices)]

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
        return {loop.name: figures for loop in self._loops if (figures := loop.memory_bytes())}

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
