"""The stock pipelines the way of fal's Sana example: asynchronous endpoints that draw in the event loop.

    uvicorn loadtests.baselines.reference:app --port 3002

As there, a request is drawn, checked, encoded and stored in one go inside an `async` function, so that
nothing else is answered meanwhile; `seed or torch.seed()` takes 0 for none; sprint runs at two steps
alone. Only what needs fal's platform differs: pictures go to a folder instead of its content network.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from loadtests.baselines import pipelines

_FOLDER = Path(tempfile.mkdtemp(prefix="reference-baseline-"))
_STEPS = {"base": 18, "sprint": 2}


@asynccontextmanager
async def _setup(app: Starlette) -> AsyncIterator[None]:
    app.state.pipes, app.state.device = pipelines.load()
    app.state.safety = pipelines.load_safety()
    yield


async def _generate(request: Request, model: str) -> JSONResponse:
    import torch

    state, body = request.app.state, await request.json()
    if "prompt" not in body:
        return JSONResponse({"detail": "prompt is missing"}, 422)
    width, height = pipelines.size_of(body.get("image_size", {"width": 3840, "height": 2160}))
    seed = body.get("seed") or torch.seed()
    num_images = body.get("num_images", 1)
    model_input: dict[str, Any] = {
        "prompt": body["prompt"],
        "negative_prompt": body.get("negative_prompt", ""),
        "num_inference_steps": body.get("num_inference_steps", _STEPS[model]),
        "guidance_scale": body.get("guidance_scale", 5.0),
        "height": height,
        "width": width,
        "num_images_per_prompt": num_images,
        "generator": torch.Generator(state.device).manual_seed(seed),
    }
    if model == "sprint":
        model_input.pop("negative_prompt")
    pictures = state.pipes[model](**model_input).images
    checked = body.get("enable_safety_checker", True)
    flags = state.safety.flags(pictures) if checked else [False] * len(pictures)
    base_url = f"{request.url.scheme}://{request.url.netloc}"
    output_format = body.get("output_format", "jpeg")
    units = math.ceil(width * height / (1024 * 1024)) * num_images
    return JSONResponse(
        {
            "images": [pipelines.save(each, output_format, _FOLDER, base_url) for each in pictures],
            "seed": seed,
            "has_nsfw_concepts": flags,
            "prompt": body["prompt"],
        },
        headers={"x-fal-billable-units": str(units)},
    )


async def generate(request: Request) -> JSONResponse:
    """Text to image with the base pipeline."""
    return await _generate(request, "base")


async def sprint(request: Request) -> JSONResponse:
    """Text to image with the sprint pipeline."""
    return await _generate(request, "sprint")


async def ready(request: Request) -> JSONResponse:
    """The pipelines are loaded before the first request is taken."""
    return JSONResponse({})


app = Starlette(
    lifespan=_setup,
    routes=[
        Route("/", generate, methods=["POST"]),
        Route("/generate", generate, methods=["POST"]),
        Route("/sprint", sprint, methods=["POST"]),
        Route("/livez", ready),
        Route("/readyz", ready),
        Mount("/files", StaticFiles(directory=_FOLDER)),
    ],
)
