"""What a device's process and the one with the queue tell each other. Pickled; both run the same code.

To the device come a `Begin` for each job, and one `Stop`. From it come lists of the others, `Ready` or `Refused` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sana_service.engine.job import Job
    from sana_service.engine.limits import Limits
    from sana_service.engine.observer import Preview, Progress
    from sana_service.engine.work import Work
    from sana_service.models.names import ModelName


class Begin(NamedTuple):
    """A job for the device.

    Args:
        number: which the answers name; each is used once.
        job: without an observer and a cancellation, which stay behind.
        submitted_at: `time.monotonic()` of when it came, the same clock in both processes.
        offset: of its block in the pixel memory.
        watched: whether its progress is to be told.
        previews: wanted of each image.
    """

    number: int
    job: Job
    submitted_at: float
    offset: int
    watched: bool
    previews: int


class Stop(NamedTuple):
    """End the running jobs within a step, and the process."""


class Ready(NamedTuple):
    """The models are loaded and the device is prepared.

    Args:
        names: of each model, for an image's metadata.
        limits: of the device.
    """

    names: Mapping[ModelName, str]
    limits: Limits


class Refused(NamedTuple):
    """The device cannot be used.

    Args:
        reason: one line.
    """

    reason: str


class StepTaken(NamedTuple):
    """See `Costs.observe_step`."""

    model: ModelName
    rows: int
    seconds: float


class ImageTaken(NamedTuple):
    """See `Costs.observe_image`."""

    model: ModelName
    seconds: float


class Left(NamedTuple):
    """What a job has before it, for predictions."""

    number: int
    rows: int
    images: int


class Told(NamedTuple):
    """What a job's observer is to hear."""

    number: int
    what: Progress | Preview


class Drawn(NamedTuple):
    """A job's pixels are in its block; the rest of its artifact."""

    number: int
    flagged: tuple[bool, ...]
    timings: dict[str, float]
    batch_images: float


class Failed(NamedTuple):
    """A job ended without a picture.

    Args:
        kind: name of the error's class.
        text: of the error.
        trace: where it was raised.
    """

    number: int
    kind: str
    text: str
    trace: str


class GivenBack(NamedTuple):
    """A job of a lost device may begin anew on another; where it may not, `Failed` follows."""

    number: int


class Lost(NamedTuple):
    """The device is of no more use."""


class LetGo(NamedTuple):
    """Nothing in the device's process writes to a block any more.

    Args:
        offset: of the block.
    """

    offset: int


class Facts(NamedTuple):
    """What metrics ask for, told from time to time.

    Args:
        memory_bytes: see `Stages.memory_bytes`.
        shortages: see `DeviceWork.shortages`.
    """

    memory_bytes: dict[str, int]
    shortages: dict[Work, int]


Message = Ready | Refused | StepTaken | ImageTaken | Left | Told | Drawn | Failed | GivenBack | Lost | LetGo | Facts
