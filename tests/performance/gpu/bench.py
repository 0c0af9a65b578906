"""What the parts share: jobs, the stock pipelines, medians, the rate of matrix products, a file of results."""

from __future__ import annotations

import faulthandler
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaPipeline, SanaSprintPipeline

from loadtests.provenance import commit
from sana_service.engine.engine import Engine
from sana_service.engine.job import Job
from sana_service.models.checkpoint import Models

ROOT = Path(__file__).resolve().parents[3]

GIVE_UP_SECONDS = 530
"""Then a part prints where every thread stands, and ends: a device that hangs ends nothing by itself."""

STEPS = {"base": 18, "sprint": 2}
SQUARE, DEFAULT = (1024, 1024), (3840, 2160)


class Results:
    """A part's figures in a JSON file, written as they come.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = {
            "commit": commit(ROOT),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
        }

    def note(self, key: str, value: object) -> None:
        """Keep and print a result."""
        self.values[key] = value
        print(key, json.dumps(value), flush=True)
        self._path.write_text(json.dumps(self.values, indent=1) + "\n")


def run_part(measure: Callable[[Results], None]) -> None:
    """Run a part as a program whose one argument is the file of its results."""
    faulthandler.dump_traceback_later(GIVE_UP_SECONDS, exit=True)
    results = Results(Path(sys.argv[1]))
    measure(results)
    results.note("done", value=True)
    faulthandler.cancel_dump_traceback_later()


def request(model: Any, size: tuple[int, int], seed: int = 0) -> Job:
    """A default request of an endpoint, without the safety check; each seed has a prompt of its own."""
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


class Requests:
    """Asks an engine for pictures with prompts that nobody has asked for before."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._seed = 0

    def jobs(self, model: str, size: tuple[int, int], count: int) -> list[Job]:
        """So many default requests."""
        self._seed += count
        return [request(model, size, self._seed + number) for number in range(count)]

    def draw(self, model: str, size: tuple[int, int], _: int = 0) -> Any:
        """The artifact of one request."""
        return self.engine.submit(self.jobs(model, size, 1)[0]).result()

    def draw_all(self, model: str, size: tuple[int, int], count: int) -> tuple[float, float]:
        """Seconds of so many requests at once, and their mean batch."""
        jobs = self.jobs(model, size, count)
        started = time.perf_counter()
        artifacts = [future.result() for future in [self.engine.submit(job) for job in jobs]]
        seconds = time.perf_counter() - started
        return seconds, statistics.mean(artifact.batch_images for artifact in artifacts)

    def alone(self, model: str, size: tuple[int, int], repeats: int) -> float:
        """Median seconds of one request after another."""
        return median_seconds(partial(self.draw, model, size), repeats)


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
