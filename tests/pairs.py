"""A one-layer pair of checkpoints, the stock pipelines on it, and jobs: where engine and model tests start.

The stock pipelines are the independent calculation: diffusers' own classes, loaded from the same
folders by diffusers' own loader, called with one generator per image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sana_service.engine.admission import Downstream
from sana_service.engine.bins import Box, Size
from sana_service.engine.device import build_device
from sana_service.engine.engine import Engine
from sana_service.engine.job import Job
from sana_service.engine.observer import Preview, Progress
from sana_service.models.bundled.random_pair import build_random_pair
from sana_service.models.checkpoint import Checkpoint, Models
from sana_service.models.load import load_models
from sana_service.safety import SafetyModel

DIFFUSERS_WARNS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""Warnings are errors; this one is of diffusers' DPM-Solver, where it turns a tensor into an array."""

# The machine is shared, and rounding depends on how sums are split among threads.
torch.set_num_threads(1)

EXAMPLE: dict[str, Any] = {
    "model": "base",
    "prompt": "A small red circle on a white background",
    "negative_prompt": "",
    "width": 1024,
    "height": 1024,
    "num_inference_steps": 2,
    "guidance_scale": 5.0,
    "seeds": (0,),
    "check_safety": True,
}


def job(**changes: Any) -> Job:
    """An example with a minute to live."""
    return Job(**{**EXAMPLE, "deadline": time.monotonic() + 60, **changes})


def local_engine(
    models: Models | Sequence[Models],
    *,
    max_queue: int,
    safety: SafetyModel | None = None,
    nsfw_threshold: float = 0.5,
    max_work: float = math.inf,
    downstream: Downstream | None = None,
    **options: Any,
) -> Engine:
    """An engine whose devices are in this process; other options are those of `build_device`."""
    sets = models if isinstance(models, Sequence) else [models]
    devices = [build_device(one, safety, nsfw_threshold, **options) for one in sets]
    return Engine(devices, max_queue=max_queue, max_work=max_work, downstream=downstream)


class Recorder:
    """An observer that remembers."""

    def __init__(self, previews: int = 0) -> None:
        self.previews = previews
        self.told: list[Progress] = []
        self.shown: list[Preview] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    def preview(self, preview: Preview) -> None:
        self.shown.append(preview)


@dataclass(frozen=True)
class Pair:
    """Two complete pipelines in the hub's layout."""

    base: Path
    sprint: Path

    def load(self) -> Models:
        return load_models("hub", str(self.base), str(self.sprint), None, None, "cpu", progress=False)


def write_pair(folder: Path, **options: Any) -> Pair:
    """A quick pair with random weights; options as `build_random_pair` has them."""
    return Pair(*build_random_pair(folder, **options))


class Stock:
    """The two pipelines of diffusers, untouched by this project's code."""

    def __init__(self, pair: Pair) -> None:
        from diffusers import SanaPipeline, SanaSprintPipeline

        self.base: Any = SanaPipeline.from_pretrained(pair.base, dtype=torch.float32)
        self.sprint: Any = SanaSprintPipeline.from_pretrained(pair.sprint, dtype=torch.float32)
        for pipeline in (self.base, self.sprint):
            pipeline.set_progress_bar_config(disable=True)

    def draw(self, job: Job) -> np.ndarray:
        """(images, height, width, 3) float32 in [0, 1], before quantisation."""
        arguments: dict[str, Any] = {
            "prompt": job.prompt,
            "width": job.width,
            "height": job.height,
            "num_inference_steps": job.num_inference_steps,
            "guidance_scale": job.guidance_scale,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in job.seeds],
            "num_images_per_prompt": len(job.seeds),
            "output_type": "np",
        }
        if job.model == "base":
            images = self.base(**arguments, negative_prompt=job.negative_prompt).images
        else:
            between = 1.3 if job.num_inference_steps == 2 else None
            images = self.sprint(**arguments, intermediate_timesteps=between).images
        return np.asarray(images)


class BundledStock(Stock):
    """The pipelines of diffusers around the bundled modules."""

    def __init__(self, models: Models) -> None:
        from diffusers import SanaPipeline, SanaSprintPipeline

        pipelines: dict[str, Any] = {"base": SanaPipeline, "sprint": SanaSprintPipeline}
        for name, checkpoint in models.checkpoints.items():
            parts = (checkpoint.vae, checkpoint.transformer, checkpoint.scheduler)
            pipeline = pipelines[name](models.tokenizer, models.text_encoder, *parts)
            pipeline.set_progress_bar_config(disable=True)
            setattr(self, name, pipeline)


def quantise(images: np.ndarray) -> np.ndarray:
    """As diffusers' `numpy_to_pil` does."""
    pixels: np.ndarray = (images * 255).round().astype("uint8")
    return pixels


def pillow_resize(image: torch.Tensor, crop: Box, size: Size) -> np.ndarray:
    """Crop (3, h, w) in [0, 1], resample with Pillow's bicubic in float: (height, width, 3), 0 to 255."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    to = (size.width, size.height)
    channels = [
        np.asarray(Image.fromarray(channel.numpy()).crop(box).resize(to, Image.Resampling.BICUBIC)) for channel in image
    ]
    pixels: np.ndarray = np.clip(np.stack(channels, axis=-1), 0, 1) * 255
    return pixels


def with_checkpoint(models: Models, **changes: Any) -> Models:
    """The models with parts of the base checkpoint exchanged."""
    base: Checkpoint = replace(models.checkpoints["base"], **changes)
    return replace(models, checkpoints={**models.checkpoints, "base": base})
