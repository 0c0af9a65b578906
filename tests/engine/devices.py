"""Devices that a process of its own can build: specifications are pickled, so they stand in a module."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch

from sana_service.engine.device import LocalDevice, build_device
from sana_service.engine.stages import Stages
from sana_service.models.names import ModelName
from tests.engine.simulated import LIMITS, PacedStages

NAMES: dict[ModelName, str] = {"base": "a base", "sprint": "a sprint"}


class _Plain:
    def configure(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PairDevice(_Plain):
    """A pair of checkpoints on the CPU."""

    base: Path
    sprint: Path

    def build(self) -> LocalDevice:
        from tests.pairs import Pair  # the other devices need no diffusers, and start sooner

        return replace(build_device(Pair(self.base, self.sprint).load(), None, 0.5), names=NAMES)


class WritingStages(PacedStages):
    """A simulated device whose pictures hold their seed, and which may fail.

    Args:
        fails: the image from which on it is lost; None for never.
    """

    def __init__(self, paces: Mapping[str, tuple[float, float]], fails: int | None) -> None:
        super().__init__(paces)
        self._left = fails

    def decode(self, shot: Any, *, tiled: bool = False) -> torch.Tensor:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise torch.AcceleratorError("CUDA error: gone")
        if shot.flight.job.prompt == "break":
            raise ValueError("a picture that cannot be drawn")
        return super().decode(shot, tiled=tiled)

    def resize(self, shot: Any, image: torch.Tensor) -> None:
        shot.flight.pixels[shot.image] = shot.flight.job.seeds[shot.image] % 251


@dataclass(frozen=True)
class SimulatedDevice(_Plain):
    """A device without a model.

    Args:
        step_seconds, image_seconds: of a batch's step and of an image's decode.
        paces: the same by model; None for the same of both.
        fails: the image from which on it is lost.
        refuses: why it cannot be built.
    """

    step_seconds: float = 0.0
    image_seconds: float = 0.0
    paces: Mapping[str, tuple[float, float]] | None = None
    fails: int | None = None
    refuses: str = ""

    def build(self) -> LocalDevice:
        if self.refuses:
            raise OSError(self.refuses)
        if self.fails is not None:
            # The CPU always answers.
            patch("sana_service.engine.loop.answers", return_value=False).start()
        paces = self.paces or dict.fromkeys(NAMES, (self.step_seconds, self.image_seconds))
        stages = WritingStages(paces, self.fails)
        return LocalDevice(cast(Stages, stages), LIMITS, NAMES)


@dataclass(frozen=True)
class SlowDevice(_Plain):
    """A device that takes for ever to load."""

    def build(self) -> LocalDevice:
        time.sleep(3600)
        raise AssertionError("unreachable")
