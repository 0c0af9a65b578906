"""The engine against the stock pipelines on a GPU, full size, random weights: `python -m tests.performance.engine_gpu`.

One request alone (submit to pixels on the host), and many at once. Results go to `$OUT/engine_gpu.json` as they come.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaPipeline, SanaSprintPipeline

from sana_service.engine.engine import Engine
from sana_service.engine.job import Job
from sana_service.models.checkpoint import Models
from sana_service.models.load import load_models

STEPS = {"base": 18, "sprint": 2}
SIZES = [(1024, 1024), (3840, 2160)]
REPEATS = 5


def request(model: Any, width: int, height: int, seed: int = 0) -> Job:
    """A default request of an endpoint, without the safety check."""
    return Job(
        model=model,
        prompt=f"a red circle on a white background, number {seed}",
        negative_prompt="",
        width=width,
        height=height,
        num_inference_steps=STEPS[model],
        guidance_scale=5.0,
        seeds=(seed,),
        check_safety=False,
        deadline=time.monotonic() + 600,
    )


def stock_pipelines(models: Models) -> dict[str, Any]:
    """Diffusers' pipelines around the same modules."""
    pipelines: dict[str, Any] = {}
    for name, kind in (("base", SanaPipeline), ("sprint", SanaSprintPipeline)):
        one = models.checkpoints[name]  # type: ignore[index]
        parts = (models.tokenizer, models.text_encoder, one.vae, one.transformer, one.scheduler)
        pipelines[name] = kind(*parts)
        pipelines[name].set_progress_bar_config(disable=True)
    return pipelines


def median_seconds(work: Callable[[], object]) -> float:
    """Of some runs, after one that does not count."""
    samples = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[1:])


def _drawn(engine: Engine, job: Job) -> object:
    return engine.submit(job).result()


def main() -> None:
    """Measure and print; the last line is JSON."""
    out = Path(os.environ.get("OUT", ".")) / "engine_gpu.json"
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}

    def note(key: str, value: object) -> None:
        result[key] = value
        print(key, value, flush=True)
        out.write_text(json.dumps(result, indent=1))

    models = load_models("random", "", "", None, None, "cuda:0", progress=False)
    engine = Engine(models, safety=None, nsfw_threshold=0.5, max_queue=64)
    engine.start()
    stock = stock_pipelines(models)
    for model, steps in STEPS.items():
        for width, height in SIZES:
            job = request(model, width, height)
            arguments: dict[str, Any] = {"width": width, "height": height, "num_inference_steps": steps}
            if model == "sprint":
                arguments["intermediate_timesteps"] = 1.3
            ours = median_seconds(partial(_drawn, engine, job))
            theirs = median_seconds(partial(stock[model], job.prompt, **arguments))
            note(f"{model} {width}x{height}", {"engine": ours, "stock": theirs, "ratio": ours / theirs})
        started = time.perf_counter()
        count = 16 if model == "base" else 48
        futures = [engine.submit(request(model, 1024, 1024, seed)) for seed in range(count)]
        artifacts = [future.result() for future in futures]
        rate = count / (time.perf_counter() - started)
        note(f"{model} saturated", {"images_per_second": rate, "batch": artifacts[-1].batch_images})
    note("peak_memory_bytes", torch.cuda.max_memory_allocated())
    engine.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
