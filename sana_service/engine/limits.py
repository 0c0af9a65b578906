"""How much may be on one device at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sana_service.models.checkpoint import Models
    from sana_service.models.names import ModelName

_CELLS_PER_IMAGE = 32 * 32
"""Latent cells of a 1024x1024 picture; larger layouts get fewer images, smaller ones more."""

_GPU_IMAGES: dict[ModelName, int] = {"base": 1, "sprint": 2}
_CPU_IMAGES: dict[ModelName, int] = {"base": 1, "sprint": 1}
_SEATS_BESIDES = 2


@dataclass(frozen=True)
class Limits:
    """Of one device, by model.

    Args:
        batch_cells: most latent cells of one forward pass, images times height times width.
        seats: images between the queue and the finished picture; more than a batch, so that a job's text is
            encoded, and another one's picture decoded, while a full batch is denoised.
        drawn_pixels: of one picture, as it is denoised; a megapixel where nothing is said.
    """

    batch_cells: Mapping[ModelName, int]
    seats: Mapping[ModelName, int]
    drawn_pixels: Mapping[ModelName, int] = field(default_factory=dict)


def default_limits(models: Models) -> Limits:
    """For the device that the models are on.

    A batch is as large as fills a GPU's matrix products, and no larger: on an H100 four guided images a step take 2 %
    less device time each than one (46.5 ms for four, 11.9 ms for one), and everybody else, sprint above all, would wait
    four times as long for the step to end. On a CPU a batch takes as long as its images one after another
    (docs/performance.md), so there they stay apart: nobody waits for a stranger's image, and a picture has the same
    bytes whatever is beside it.
    """
    images = _GPU_IMAGES if models.device.type == "cuda" else _CPU_IMAGES
    cells = {model: most * _CELLS_PER_IMAGE for model, most in images.items()}
    seats: dict[ModelName, int] = {}
    drawn_pixels: dict[ModelName, int] = {}
    for model, most in cells.items():
        side = models.checkpoints[model].transformer.config.sample_size
        seats[model] = 2 * max(1, most // side**2) + _SEATS_BESIDES
        # All bins of a checkpoint have about the area of its square one; a latent cell is 32 pixels wide.
        drawn_pixels[model] = (32 * side) ** 2
    return Limits(cells, seats, drawn_pixels)
