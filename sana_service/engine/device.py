"""A device as the engine is given it: what it may hold, and the loop that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sana_service.engine.limits import Limits, default_limits
from sana_service.engine.loop import DeviceLoop
from sana_service.engine.stages import Stages

if TYPE_CHECKING:
    from sana_service.engine.admission import JobQueue
    from sana_service.engine.costs import Costs
    from sana_service.engine.work import Work
    from sana_service.models.checkpoint import Models
    from sana_service.models.names import ModelName, Precision
    from sana_service.safety import SafetyModel


class Loop(Protocol):
    """Serves one device."""

    lost: bool

    @property
    def name(self) -> str:
        """Of the device, such as "cuda:0"."""

    def memory_bytes(self) -> dict[str, int]: ...

    @property
    def shortages(self) -> Mapping[Work, int]: ...

    def prepare(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout_seconds: float) -> bool: ...


class Device(Protocol):
    """One device of an engine."""

    @property
    def limits(self) -> Limits: ...

    @property
    def names(self) -> Mapping[ModelName, str]:
        """What each model is called in an image's metadata."""

    def loop(self, number: int, queue: JobQueue, costs: Costs) -> Loop:
        """What takes the device's jobs from a queue; once."""


@dataclass(frozen=True)
class LocalDevice:
    """A device of this process: a `Device`.

    Args:
        stages: with the models on the device.
        limits: of the device.
        names: of each model.
    """

    stages: Stages
    limits: Limits
    names: Mapping[ModelName, str]

    def loop(self, number: int, queue: JobQueue, costs: Costs) -> Loop:
        return DeviceLoop(number, self.stages, queue, costs, self.limits.batch_cells)


def build_device(
    models: Models,
    safety: SafetyModel | None,
    nsfw_threshold: float,
    *,
    limits: Limits | None = None,
    graph_bytes: int | None = None,
    precision: Precision = "exact",
) -> LocalDevice:
    """A device of this process.

    Args:
        models: on the device.
        safety: classifies pictures; None leaves every picture unflagged.
        nsfw_threshold: probability strictly above which a picture becomes black.
        limits: how much may be on the device; by default what suits it.
        graph_bytes: what captured CUDA graphs may hold of the device's memory; 0 for none, None for a default by its
            size. Without effect on a CPU.
        precision: of the transformers.

    Raises:
        UnsupportedScheduler: a checkpoint's scheduler cannot be run row by row.
        UnsupportedPrecision: the device or a checkpoint cannot be run in that precision.
    """
    stages = Stages(models, safety, nsfw_threshold, graph_bytes=graph_bytes, precision=precision)
    names = {name: checkpoint.name for name, checkpoint in models.checkpoints.items()}
    return LocalDevice(stages, limits or default_limits(models), names)
