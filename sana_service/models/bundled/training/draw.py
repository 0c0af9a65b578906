"""Held-out prompts, and processes that draw and judge them with the stock pipelines, one thread each."""

from __future__ import annotations

import random
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SanaPipeline, SanaSprintPipeline, SanaTransformer2DModel
from numpy.typing import NDArray
from PIL import Image

from sana_service.models.bundled.training.captions import describe
from sana_service.models.bundled.training.language import Scene, sample_scene
from sana_service.models.bundled.training.pixels import Pixels, Score, score, sharpness
from sana_service.models.bundled.training.scenes import sample_sizes

SEED = 300
CHECKER_SIDE = 256  # the NSFW checker shrinks every picture to it first, without keeping its shape


@dataclass(frozen=True)
class Case:
    """One held-out prompt with its scene, size and seed."""

    prompt: str
    scene: Scene
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class Models:
    """What draws.

    Args:
        folder: with `base` and `sprint` as in the package.
        sprint: a folder with another sprint transformer, fresh from its stage.
        device: torch's name for it.
    """

    folder: Path
    sprint: Path | None
    device: str


@dataclass(frozen=True)
class Wish:
    """One picture; `kind` is base or sprint."""

    kind: str
    prompt: str
    width: int
    height: int
    seed: int
    steps: int
    guidance: float
    negative: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """A picture's score, its sharpness (1 as a true rendering) and what the NSFW checker would see of it."""

    score: Score
    sharpness: float
    small: Pixels


def held_out_cases(count: int = 300) -> list[Case]:
    """The same prompts every time; every size of the 1024 set is as likely, 1024x1024 five times so."""
    rng = random.Random(SEED)
    cases: list[Case] = []
    while len(cases) < count:
        scene = sample_scene(rng, held_out=True)
        if scene.background.pattern == "solid":
            width, height = sample_sizes(1, rng)[0]
            cases.append(Case(describe(scene, rng, plain=True), scene, width, height, SEED + len(cases)))
    return cases


class Studio:
    """Processes that draw, each with pipelines of its own."""

    def __init__(self, models: Models, processes: int) -> None:
        self.models = models
        self.pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def draw(self, wish: Wish) -> Future[Pixels]:
        """A picture to come."""
        return self.pool.submit(picture, self.models, wish)

    def judge(self, kind: str, case: Case, steps: int, guidance: float) -> Future[Judged]:
        """A held-out prompt's picture to come, judged where it is drawn."""
        return self.pool.submit(_judge, self.models, kind, case, steps, guidance)

    def difference(self, kind: str, case: Case, steps: int, scales: tuple[float, float]) -> Future[float]:
        """Mean absolute difference, of 255, between two guidance scales, to come."""
        return self.pool.submit(_difference, self.models, kind, case, steps, scales)


@cache
def _pipeline(models: Models, kind: str) -> Any:
    torch.set_num_threads(1)
    if kind == "base":
        pipeline: Any = SanaPipeline.from_pretrained(models.folder / "base", dtype=torch.float32, use_safetensors=True)
    else:
        base = _pipeline(models, "base")
        parts = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae")}
        if models.sprint:
            parts["transformer"] = SanaTransformer2DModel.from_pretrained(models.sprint, dtype=torch.float32)
        pipeline = SanaSprintPipeline.from_pretrained(models.folder / "sprint", dtype=torch.float32, **parts)
    pipeline.to(models.device).set_progress_bar_config(disable=True)
    return pipeline


def picture(models: Models, wish: Wish) -> Pixels:
    """Draw with the stock pipeline, in float32: (height, width, 3)."""
    options: dict[str, Any] = {"negative_prompt": wish.negative} if wish.kind == "base" else {}
    if wish.kind == "sprint" and wish.steps != 2:
        options["intermediate_timesteps"] = None
    image = _pipeline(models, wish.kind)(
        wish.prompt, width=wish.width, height=wish.height, num_inference_steps=wish.steps,
        guidance_scale=wish.guidance, generator=torch.Generator().manual_seed(wish.seed), output_type="np", **options,
    ).images[0]  # fmt: skip
    pixels: Pixels = (image * 255).round().astype(np.uint8)
    return pixels


def _of(kind: str, case: Case, steps: int, guidance: float) -> Wish:
    return Wish(kind, case.prompt, case.width, case.height, case.seed, steps, guidance)


def _judge(models: Models, kind: str, case: Case, steps: int, guidance: float) -> Judged:
    drawn = picture(models, _of(kind, case, steps, guidance))
    side = CHECKER_SIDE, CHECKER_SIDE
    small = np.asarray(Image.fromarray(drawn).resize(side, resample=Image.Resampling.BILINEAR))
    return Judged(score(drawn, case.scene), sharpness(drawn, case.scene), small)


def _difference(models: Models, kind: str, case: Case, steps: int, scales: tuple[float, float]) -> float:
    one, other = (picture(models, _of(kind, case, steps, scale)) for scale in scales)
    return mean_difference(one, other)


def mean_difference(one: Pixels, other: Pixels) -> float:
    """Mean absolute difference of two pictures, of 255."""
    apart: NDArray[np.floating] = abs(one.astype(np.float32) - other.astype(np.float32))
    return float(apart.mean())
