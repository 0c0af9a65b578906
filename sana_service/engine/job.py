"""The forms a request takes inside the engine: a `Job` goes in, an `Artifact` comes out.

Pure Python; the engine's clients (HTTP, command line, tests) need nothing else of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from sana_service.engine.observer import Observer
    from sana_service.models.names import ModelName


class Flag(Protocol):
    """Set once; a `threading.Event` is one."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...


class _Never:
    """Nobody can set it, which leaves it the same in every process."""

    def set(self) -> None:
        raise AssertionError("this copy of a job cannot be cancelled")

    def is_set(self) -> bool:
        return False


NEVER = _Never()


@dataclass(frozen=True, eq=False)
class Job:
    """One request, validated, as the engine sees it.

    Args:
        model: which transformer draws.
        prompt: the text to draw, style template applied, any case.
        negative_prompt: what to avoid; read by the base model when guidance is on.
        width, height: pixels of the finished picture; the bin is the engine's business.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance for base (on above 1), embedded guidance for sprint.
        seeds: one per image, 0 to 2**64 - 1; image i depends on seeds[i] alone.
        check_safety: whether the images are classified, and flagged ones blackened.
        deadline: `time.monotonic()` seconds after which the job is dropped.
        request_id: for the log.
        observer: is told how far the job is; None where nobody looks.
        cancellation: whether it was cancelled.
    """

    model: ModelName
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seeds: tuple[int, ...]
    check_safety: bool
    deadline: float
    request_id: str = ""
    observer: Observer | None = field(default=None, repr=False)
    cancellation: Flag = field(default_factory=threading.Event, repr=False)
    _watchers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def cancel(self) -> None:
        """Ask for the job to end; it leaves the device within one denoising step."""
        self.cancellation.set()
        for told in tuple(self._watchers):
            told()

    @property
    def cancelled(self) -> bool:
        return self.cancellation.is_set()

    @property
    def pixel_shape(self) -> tuple[int, int, int, int]:
        """Of its artifact: images, height, width, channels."""
        return (len(self.seeds), self.height, self.width, 3)

    def when_cancelled(self, told: Callable[[], None]) -> None:
        """Call once the job is cancelled, perhaps twice; at once where it is already."""
        self._watchers.append(told)
        if self.cancelled:
            told()

    def order(self) -> Job:
        """What another process is to draw: the job without what watches it."""
        return replace(self, observer=None, cancellation=NEVER, _watchers=[])


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a job became.

    Args:
        pixels: (images, height, width, 3) uint8, flagged images already black.
        flagged: one per image, true where the safety model was over its threshold.
        timings: seconds by stage: queue, text, denoise, decode, safety, resize.
        batch_images: images in the forward pass, a mean over the job's steps.
    """

    pixels: np.ndarray
    flagged: tuple[bool, ...]
    timings: dict[str, float]
    batch_images: float = 1.0
