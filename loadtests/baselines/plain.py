"""The stock pipelines behind a BentoML service, the plain way: one synchronous API for each endpoint.

bentoml serve loadtests.baselines.plain:Plain --port 3001
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("BENTOML_CONTAINERIZED", "true")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")

import bentoml
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from loadtests.baselines import pipelines

_FOLDER = Path(tempfile.mkdtemp(prefix="plain-baseline-"))
_FILES = Starlette(routes=[Mount("/", StaticFiles(directory=_FOLDER))])


@bentoml.asgi_app(_FILES, path="/files")
@bentoml.service(name="plain", workers=1, traffic={"timeout": 600})
class Plain:
    """Loads, draws, saves, answers."""

    def __init__(self) -> None:
        self._pipes, self._device = pipelines.load()
        self._safety = pipelines.load_safety()

    @bentoml.api(route="/generate")
    def generate(
        self,
        ctx: bentoml.Context,
        prompt: str,
        negative_prompt: str = "",
        image_size: Any = "square_hd",
        num_inference_steps: int = 18,
        guidance_scale: float = 5.0,
        num_images: int = 1,
        output_format: str = "jpeg",
        enable_safety_checker: bool = True,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Text to image with the base pipeline."""
        more = {"negative_prompt": negative_prompt}
        request = (prompt, image_size, num_inference_steps, guidance_scale, num_images, output_format, seed)
        return self._draw(ctx, "base", *request, enable_safety_checker, more)

    @bentoml.api(route="/sprint")
    def sprint(
        self,
        ctx: bentoml.Context,
        prompt: str,
        image_size: Any = "square_hd",
        num_inference_steps: int = 2,
        guidance_scale: float = 5.0,
        num_images: int = 1,
        output_format: str = "jpeg",
        enable_safety_checker: bool = True,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Text to image with the sprint pipeline."""
        more = {} if num_inference_steps == 2 else {"intermediate_timesteps": None}
        request = (prompt, image_size, num_inference_steps, guidance_scale, num_images, output_format, seed)
        return self._draw(ctx, "sprint", *request, enable_safety_checker, more)

    def _draw(
        self,
        ctx: bentoml.Context,
        model: str,
        prompt: str,
        image_size: Any,
        steps: int,
        guidance_scale: float,
        num_images: int,
        output_format: str,
        seed: int | None,
        check: bool,
        more: dict[str, Any],
    ) -> dict[str, Any]:
        import torch

        width, height = pipelines.size_of(image_size)
        seed = torch.seed() % 2**32 if seed is None else seed
        pictures = self._pipes[model](
            prompt=prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images,
            generator=torch.Generator(self._device).manual_seed(seed),
            **more,
        ).images
        flags = self._safety.flags(pictures) if check else [False] * len(pictures)
        ctx.response.headers["x-fal-billable-units"] = str(-(-width * height // 2**20) * num_images)
        base_url = f"{ctx.request.url.scheme}://{ctx.request.url.netloc}"
        return {
            "images": [pipelines.save(each, output_format, _FOLDER, base_url) for each in pictures],
            "seed": seed,
            "has_nsfw_concepts": flags,
            "prompt": prompt,
        }
