"""The engine against the stock pipelines on a GPU, full size, random weights: `make bench-gpu`.

One request alone (submit to pixels on the host) at the square size and at the default one, saturation, a sprint request
beside saturating base requests, and the share of the floor: matrix products alone (docs/performance.md) at the rate
that one large product reaches in the same run. Stock means diffusers' pipelines on the same weights, one request at a
time, as their documentation calls them. Results go to `$OUT/engine_gpu.json` as they come; the last line is JSON.
"""

from __future__ import annotations

import faulthandler
import json
import os
import statistics
import threading
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

GIVE_UP_SECONDS = 500
"""Then it prints where every thread stands, and ends: a device that hangs ends nothing by itself."""

STEPS = {"base": 18, "sprint": 2}
SQUARE, DEFAULT = (1024, 1024), (3840, 2160)
TEXT_TOKENS = 40
"""Of a prompt behind its instruction, whose keys are known; of 300 at most."""

FORWARD_TFLOP, DECODE_TFLOP, TEXT_TFLOP_PER_TOKEN = 2.967, 8.369, 4.1e-3
"""Of one transformer row, one picture and one token at 1024x1024."""

MUST = {"base": 0.42, "sprint": 0.26}
"""Share of the stock pipeline's time that one request alone may take at the square size."""


def request(model: Any, size: tuple[int, int], seed: int = 0) -> Job:
    """A default request of an endpoint, without the safety check."""
    return Job(
        model=model,
        prompt=f"a red circle on a white background, number {seed}",
        negative_prompt="",
        width=size[0],
        height=size[1],
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


def median_seconds(work: Callable[[int], object], repeats: int) -> float:
    """Of some runs, each with a number of its own, after one that does not count."""
    samples = []
    for number in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work(number)
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[1:])


def matrix_rate() -> float:
    """TFLOP/s of an 8192-cube bfloat16 product."""
    side = 8192
    matrix = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    seconds = median_seconds(lambda _: [matrix @ matrix for _ in range(20)], 3) / 20
    return 2 * side**3 / seconds / 1e12


def floor_seconds(model: str, rate: float) -> float:
    """Of one square picture, at a rate in TFLOP/s."""
    rows = STEPS[model] * (2 if model == "base" else 1)
    return (rows * FORWARD_TFLOP + DECODE_TFLOP + TEXT_TFLOP_PER_TOKEN * TEXT_TOKENS) / rate


class Bench:
    """An engine, the stock pipelines, and a file of results."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        self.rate = matrix_rate()
        self.note("matrix_tflops", self.rate)
        began = time.perf_counter()
        models = load_models("random", "", "", None, None, "cuda:0", progress=False)
        self.note("load_seconds", time.perf_counter() - began)
        self.stock = stock_pipelines(models)
        self.engine = Engine(models, safety=None, nsfw_threshold=0.5, max_queue=256)
        began = time.perf_counter()
        self.engine.start()
        self.note("prepare_seconds", time.perf_counter() - began)
        self._seed = 0

    def note(self, key: str, value: object) -> None:
        """Keep and print a result."""
        self.result[key] = value
        print(key, value, flush=True)
        self._out.write_text(json.dumps(self.result, indent=1))

    def jobs(self, model: str, size: tuple[int, int], count: int) -> list[Job]:
        """With prompts that nobody has asked for before."""
        self._seed += count
        return [request(model, size, self._seed + number) for number in range(count)]

    def draw(self, model: str, size: tuple[int, int], _: int) -> object:
        """One request through the engine."""
        return self.engine.submit(self.jobs(model, size, 1)[0]).result()

    def draw_stock(self, model: str, size: tuple[int, int], number: int) -> object:
        """The same through the stock pipeline."""
        arguments = {"intermediate_timesteps": 1.3} if model == "sprint" else {}
        return self.stock[model](
            f"a red circle on a white background, stock number {number}",
            width=size[0], height=size[1], num_inference_steps=STEPS[model], **arguments,
        )  # fmt: skip

    def alone(self, model: str, size: tuple[int, int], repeats: int = 5) -> None:
        """Engine, stock, stock, engine."""
        ours, theirs = partial(self.draw, model, size), partial(self.draw_stock, model, size)
        first = median_seconds(ours, repeats)
        stock = [median_seconds(theirs, repeats), median_seconds(theirs, repeats)]
        engine = statistics.mean([first, median_seconds(ours, repeats)])
        ratio = engine / statistics.mean(stock)
        artifact: Any = self.draw(model, size, 0)
        stages = {name: round(seconds * 1000, 1) for name, seconds in artifact.timings.items()}
        key = f"{model} {size[0]}x{size[1]} alone"
        self.note(key, {"engine": engine, "stock": statistics.mean(stock), "ratio": ratio, "stages_ms": stages})

    def saturated(self, model: str, size: tuple[int, int], count: int) -> None:
        """Images a second of many requests at once, against those of the stock pipeline one after another."""
        self.run_all(model, size, count // 4)
        seconds, batch = self.run_all(model, size, count)
        rate, stock = count / seconds, self.result[f"{model} {size[0]}x{size[1]} alone"]["stock"]
        note = {"images_per_second": rate, "times_stock": rate * stock, "batch": batch}
        if size == SQUARE:
            note["share_of_floor"] = rate * floor_seconds(model, self.rate)
        self.note(f"{model} {size[0]}x{size[1]} saturated", note)

    def run_all(self, model: str, size: tuple[int, int], count: int) -> tuple[float, float]:
        """Seconds of so many requests at once, and their mean batch."""
        jobs = self.jobs(model, size, count)
        started = time.perf_counter()
        artifacts = [future.result() for future in [self.engine.submit(job) for job in jobs]]
        seconds = time.perf_counter() - started
        return seconds, statistics.mean(artifact.batch_images for artifact in artifacts)

    def beside(self) -> None:
        """Sprint requests one after another, with the device idle and with base requests saturating it."""
        idle = median_seconds(partial(self.draw, "sprint", SQUARE), 9)
        load = threading.Thread(target=self.run_all, args=("base", SQUARE, 32))
        load.start()
        time.sleep(1)  # into the middle of the load
        busy = median_seconds(partial(self.draw, "sprint", SQUARE), 9)
        under_load = load.is_alive()
        load.join()
        self.note("sprint beside base", {"idle": idle, "busy": busy, "added": busy - idle, "still_loaded": under_load})


def main() -> None:
    """Measure and print."""
    faulthandler.dump_traceback_later(GIVE_UP_SECONDS, exit=True)
    bench = Bench(Path(os.environ.get("OUT", ".")) / "engine_gpu.json")
    for model in STEPS:
        bench.alone(model, SQUARE)
    for model in STEPS:
        bench.alone(model, DEFAULT, repeats=3)
    bench.saturated("base", SQUARE, 32)
    bench.saturated("sprint", SQUARE, 96)
    bench.saturated("sprint", DEFAULT, 64)
    bench.beside()
    bench.note("peak_gib", torch.cuda.max_memory_allocated() / 2**30)
    bench.note("reserved_gib", torch.cuda.memory_reserved() / 2**30)
    bench.note("goals_met", all(bench.result[f"{model} 1024x1024 alone"]["ratio"] <= MUST[model] for model in MUST))
    bench.engine.stop()
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(bench.result))


if __name__ == "__main__":
    main()
