"""A simulated device whose pictures have pixels, in a process of its own or not.

It takes the time that an H100 takes at saturation, computes nothing, and draws one noisy picture again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch.nn.functional import interpolate

from sana_service.engine.device import LocalDevice
from sana_service.engine.flight import Shot
from sana_service.engine.stages import Stages
from tests.engine.simulated import LIMITS, PacedStages

SIZES = ((1024, 1024), (3840, 2160))
"""Pictures that are made beforehand; one of another size takes long the first time."""

PACES = {"base": (0.052, 0.018), "sprint": (0.1, 0.032)}
"""Seconds of a step of a batch as large as `LIMITS` allows, and of a decode: 4.3 and 31 pictures a second."""


class DrawingStages(PacedStages):
    """A simulated device whose pictures have pixels."""

    def prepare(self, _: object) -> None:
        for width, height in SIZES:
            _picture(height, width)

    def resize(self, shot: Shot, image: torch.Tensor) -> None:
        target = shot.flight.pixels[shot.image]
        torch.from_numpy(target).copy_(_picture(*target.shape[:2]))


@cache
def _picture(height: int, width: int) -> torch.Tensor:
    """Noise of many scales, which a JPEG needs about as many bytes for as for a photograph."""
    noise, random = torch.zeros(1, 3, height, width), torch.Generator().manual_seed(7)
    for power in range(8):
        layer = torch.randn(1, 3, 8 << power, 8 << power, generator=random)
        noise += interpolate(layer, (height, width), mode="bilinear") / (power + 1)
    return (128 + 40 * noise[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


@dataclass(frozen=True)
class DrawingDevice:
    """In the place of a `ServiceDevice`."""

    name: str
    kind: str
    settings: Any

    def configure(self) -> None:
        torch.set_num_threads(1)

    def build(self) -> LocalDevice:
        return LocalDevice(cast(Stages, DrawingStages(PACES)), LIMITS, {"base": "simulated", "sprint": "simulated"})
