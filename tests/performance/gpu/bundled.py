"""The bundled pair by this engine on a GPU, exact (bfloat16) and with fp8, beside the stock pipelines in float32.

The held-out prompts and the scorer of the training; a picture's difference is that of the same prompt and seed from the
stock pipeline's, as a mean over pixels, of 255. And the decoder alone, on latents that the model ends with: this
engine's in bfloat16 against the stock one in bfloat16, and both against float32.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, get_args

import diffusers
import numpy as np
import torch

from sana_service.engine.fused.decoder import FusedDecoder
from sana_service.engine.job import Job
from sana_service.models.bundled import base_folder, sprint_folder
from sana_service.models.bundled.training import draw
from sana_service.models.bundled.training.evaluate import shares
from sana_service.models.bundled.training.pixels import score
from sana_service.models.load import load_models
from sana_service.models.names import Precision
from tests.pairs import local_engine
from tests.performance.gpu.bench import STEPS, Results, run_part

CASES, STOCK_CASES = 300, 60
"""Held-out prompts; of these the stock pipelines, a second a picture, draw the first."""

GUIDANCE = 5.0

SCORERS = 8
"""Processes; each takes a while to begin."""


def job(model: Any, case: draw.Case) -> Job:
    """A held-out prompt at the sizes and steps of its score."""
    return Job(
        model, case.prompt, "", case.width, case.height, STEPS[model], GUIDANCE, (case.seed,),
        check_safety=False, deadline=time.monotonic() + 600,
    )  # fmt: skip


def measure(results: Results) -> None:
    """Draw the prompts three times with each model."""
    cases = draw.held_out_cases(CASES)
    pipelines = _stock()
    results.note("decoder, of 255", _decoders(pipelines["base"], cases[:12]))
    # A thread each: with more than there are cores they wait for one another.
    with ProcessPoolExecutor(
        SCORERS, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for model, steps in STEPS.items():
            stock = [_stock_picture(pipelines[model], case, steps) for case in cases[:STOCK_CASES]]
            scores = list(pool.map(score, stock, [case.scene for case in cases]))
            results.note(f"{model}: stock, float32, {STOCK_CASES} prompts", {"right": shares(scores)})
            for precision in get_args(Precision):
                pictures = _drawn(model, cases, precision)
                scores = list(pool.map(score, pictures, [case.scene for case in cases]))
                apart = [draw.mean_difference(one, other) for one, other in zip(pictures, stock, strict=False)]
                found = {"right": shares(scores), "difference": float(np.mean(apart)), "most": float(np.max(apart))}
                results.note(f"{model}: this engine, {precision}", found)


def _stock() -> dict[str, Any]:
    """The library's own pipelines, in float32."""
    library: Any = diffusers
    base = library.SanaPipeline.from_pretrained(base_folder(), dtype=torch.float32, use_safetensors=True)
    shared = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae")}
    sprint = library.SanaSprintPipeline.from_pretrained(sprint_folder(), dtype=torch.float32, **shared)
    for pipeline in (base, sprint):
        pipeline.to("cuda").set_progress_bar_config(disable=True)
    return {"base": base, "sprint": sprint}


@torch.inference_mode()
def _decoders(pipeline: Any, cases: list[draw.Case]) -> dict[str, float]:
    """Decode final latents three ways: how far they are apart, of 255 as pixels are, at most."""
    latents = [
        pipeline(
            case.prompt, width=case.width, height=case.height, num_inference_steps=STEPS["base"],
            guidance_scale=GUIDANCE, generator=torch.Generator("cuda").manual_seed(case.seed), output_type="latent",
        ).images.float() / pipeline.vae.config.scaling_factor
        for case in cases
    ]  # fmt: skip
    stock = copy.deepcopy(pipeline.vae).bfloat16()
    exact = [pipeline.vae.decode(one, return_dict=False)[0] for one in latents]
    theirs = [stock.decode(one.bfloat16(), return_dict=False)[0].float() for one in latents]
    fused = FusedDecoder(stock)
    ours = [fused(one.bfloat16()).float() for one in latents]

    def most(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        pixels = zip(one, other, strict=True)
        return max(float((a.clamp(-1, 1) - b.clamp(-1, 1)).abs().max()) * 255 / 2 for a, b in pixels)

    error = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)])
    return {
        "ours to stock": most(ours, theirs), "stock to float32": most(theirs, exact),
        "ours to float32": most(ours, exact), "decibel": float(-10 * torch.log10((error / 2).square().mean())),
    }  # fmt: skip


def _stock_picture(pipeline: Any, case: draw.Case, steps: int) -> np.ndarray:
    generator = torch.Generator("cuda").manual_seed(case.seed)  # the engine's noise is its device's
    image = pipeline(
        case.prompt, width=case.width, height=case.height, num_inference_steps=steps, guidance_scale=GUIDANCE,
        generator=generator, output_type="np",
    ).images[0]  # fmt: skip
    pixels: np.ndarray = (image * 255).round().astype(np.uint8)
    return pixels


def _drawn(model: str, cases: list[draw.Case], precision: Precision) -> list[np.ndarray]:
    models = load_models("bundled", "", "", None, None, "cuda:0", progress=False)
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=len(cases), precision=precision)
    engine.start()
    futures = [engine.submit(job(model, case)) for case in cases]
    pictures = [future.result().pixels[0] for future in futures]
    engine.stop()
    del engine, models
    torch.cuda.empty_cache()
    return pictures


if __name__ == "__main__":
    run_part(measure)
