"""The forms a request takes inside the engine: a `Job` goes in, an `Artifact` comes out.

Pure Python; the engine's clients (HTTP, command line, tests) need nothing else of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from sana_service.engine.observer import Observer
    from sana_service.models.names import ModelName


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
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancel(self) -> None:
        """Ask for the job to end; it leaves the device within one denoising step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


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
