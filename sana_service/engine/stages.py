"""A job's way through the stages on one device: text, denoise, decode, safety, resize.

Thread-confined: one device loop calls it, one job at a time. No state outlives a job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from sana_service.engine.bins import Size, crop_box, nearest_bin
from sana_service.engine.decode import decode, render, require_finite
from sana_service.engine.denoise import OnStep, denoise_base, denoise_sprint
from sana_service.engine.job import Artifact, Job
from sana_service.engine.observer import PREVIEW_SIDE_PIXELS, Preview, Progress, Stage, preview_steps
from sana_service.engine.text import Embedding, PromptEncoder

if TYPE_CHECKING:
    from sana_service.models.checkpoint import Models
    from sana_service.safety import SafetyModel

Check = Callable[[], None]


class Stages:
    """Runs jobs with one set of models.

    Args:
        models: on the device of this loop.
        safety: classifies pictures, or None.
        nsfw_threshold: probability strictly above which a picture is flagged.
    """

    def __init__(self, models: Models, safety: SafetyModel | None, nsfw_threshold: float) -> None:
        self._models = models
        self._safety = safety
        self._nsfw_threshold = nsfw_threshold
        self._prompts = PromptEncoder(models.tokenizer, models.text_encoder)

    @torch.inference_mode()
    def run(self, job: Job, check: Check) -> Artifact:
        """Draw a job's pictures.

        Args:
            check: called before each stage, step and image; ends the job by raising.

        Returns:
            The artifact, its timings without `queue`.

        Raises:
            NotFinite: latents or pixels are NaN or infinite.
        """
        timings: dict[str, float] = {}
        sample_size = self._models.checkpoints[job.model].transformer.config.sample_size
        size = nearest_bin(job.width, job.height, sample_size)
        with self._stage("text", job, timings, check):
            positive = self._prompts.positive(job.prompt)
            guided = job.model == "base" and job.guidance_scale > 1
            negative = self._prompts.negative(job.negative_prompt) if guided else None
        with self._stage("denoise", job, timings, check):
            latents = self._denoise(job, size, positive, negative, check)
            require_finite(latents, "latents")
        with self._stage("decode", job, timings, check):
            images = self._decode(job, latents, check)
        with self._stage("safety", job, timings, check):
            flagged = self._flag(job, images)
        with self._stage("resize", job, timings, check):
            pixels = _resize(images, flagged, size, Size(job.width, job.height), check)
        return Artifact(pixels, flagged, timings)

    def _denoise(
        self, job: Job, size: Size, positive: Embedding, negative: Embedding | None, check: Check
    ) -> torch.Tensor:
        """(images, channels, h, w) float32; one at a time, so that none differs by rounding from the same one alone."""
        return torch.cat(
            [
                self._denoise_one(job, seed, size, positive, negative, check, self._on_step(job, image, size))
                for image, seed in enumerate(job.seeds)
            ]
        )

    def _denoise_one(
        self,
        job: Job,
        seed: int,
        size: Size,
        positive: Embedding,
        negative: Embedding | None,
        check: Check,
        on_step: OnStep | None,
    ) -> torch.Tensor:
        checkpoint = self._models.checkpoints[job.model]
        steps, guidance_scale = job.num_inference_steps, job.guidance_scale
        if job.model == "sprint":
            return denoise_sprint(
                checkpoint,
                size,
                (seed,),
                steps=steps,
                guidance_scale=guidance_scale,
                positive=positive,
                check=check,
                on_step=on_step,
            )
        return denoise_base(
            checkpoint,
            size,
            (seed,),
            steps=steps,
            guidance_scale=guidance_scale,
            positive=positive,
            negative=negative,
            check=check,
            on_step=on_step,
        )

    def _on_step(self, job: Job, image: int, size: Size) -> OnStep | None:
        """Tells the job's observer of each step of an image, and shows it the previews it wants."""
        observer = job.observer
        if observer is None:
            return None
        steps = job.num_inference_steps
        shown = preview_steps(steps, observer.previews)

        def on_step(number: int, predicted: torch.Tensor) -> None:
            observer.progress(Progress("denoise", image * steps + number, len(job.seeds) * steps))
            if number in shown:
                observer.preview(Preview(image, shown.index(number), self._preview(job, predicted, size)))

        return on_step

    def _preview(self, job: Job, latents: torch.Tensor, drawn: Size) -> np.ndarray:
        images = decode(self._models.checkpoints[job.model].vae, latents)
        scale = min(1.0, PREVIEW_SIDE_PIXELS / max(job.width, job.height))
        small = Size(max(1, round(job.width * scale)), max(1, round(job.height * scale)))
        if self._flag(job, images)[0]:
            return np.zeros((small.height, small.width, 3), np.uint8)
        crop = crop_box(drawn, Size(job.width, job.height))
        pixels: np.ndarray = render(images[0], crop, small).cpu().numpy()
        return pixels

    def _decode(self, job: Job, latents: torch.Tensor, check: Check) -> torch.Tensor:
        """(images, 3, height, width) float32 in [0, 1]; one at a time, the decoder needs the most memory."""
        vae = self._models.checkpoints[job.model].vae
        images = []
        for i in range(len(latents)):
            check()
            images.append(decode(vae, latents[i : i + 1]))
        return torch.cat(images)

    def _flag(self, job: Job, images: torch.Tensor) -> tuple[bool, ...]:
        if self._safety is None or not job.check_safety:
            return (False,) * len(images)
        probabilities = self._safety.probabilities(images)
        # Not "greater than": a probability that is no number must not let a picture through.
        return tuple(not probability <= self._nsfw_threshold for probability in probabilities)

    @contextmanager
    def _stage(self, name: Stage, job: Job, timings: dict[str, float], check: Check) -> Iterator[None]:
        """Time a stage, up to when the device has finished it."""
        check()
        if job.observer is not None:
            steps = job.num_inference_steps * len(job.seeds)
            job.observer.progress(Progress(name, 0 if name in {"text", "denoise"} else steps, steps))
        started = time.perf_counter()
        yield
        if self._models.device.type == "cuda":
            torch.cuda.synchronize(self._models.device)
        timings[name] = time.perf_counter() - started


def _resize(images: torch.Tensor, flagged: tuple[bool, ...], drawn: Size, requested: Size, check: Check) -> np.ndarray:
    """(images, height, width, 3) uint8 at the requested size, flagged pictures black."""
    pixels = np.zeros((len(images), requested.height, requested.width, 3), np.uint8)
    crop = crop_box(drawn, requested)
    for image, black, target in zip(images, flagged, pixels, strict=True):
        check()
        if not black:
            torch.from_numpy(target).copy_(render(image, crop, requested))
    return pixels
