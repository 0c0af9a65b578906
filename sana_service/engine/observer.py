"""What a job tells about itself on its way: how far it is, and early pictures of what it draws.

An observer is called from a device loop's thread, between steps. It must return at once, touch
neither the device nor the engine, and not raise; what it is told changes no picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

Stage = Literal["text", "denoise", "decode", "safety", "resize"]

PREVIEW_SIDE_PIXELS = 512
"""The longest side of a preview."""


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        stage: what has begun.
        steps_done: denoising steps that are finished, of all images together.
        steps: of them all.
    """

    stage: Stage
    steps_done: int
    steps: int


@dataclass(frozen=True, eq=False)
class Preview:
    """What an image would be if its denoising ended here.

    Args:
        image: which one of the job's.
        index: which one of the image's previews, from 0.
        pixels: (height, width, 3) uint8, in the aspect asked for, the longest side at most
            `PREVIEW_SIDE_PIXELS`; black where the safety model flags it.
    """

    image: int
    index: int
    pixels: np.ndarray


class Observer(Protocol):
    """Watches one job."""

    @property
    def previews(self) -> int:
        """Previews wanted of each image. Each costs a decode, so 0 unless somebody looks at them."""

    def progress(self, progress: Progress) -> None:
        """A stage has begun or a step has ended."""

    def preview(self, preview: Preview) -> None:
        """An early picture; at most `previews` of each image, fewer where there are fewer steps."""


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """After which steps, counted from 1, a preview is taken: evenly spread, none after the last."""
    taken = {-(-steps * k // (previews + 1)) for k in range(1, previews + 1)}
    return tuple(sorted(step for step in taken if step < steps))
