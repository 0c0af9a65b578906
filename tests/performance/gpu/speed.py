"""The engine against the stock pipelines in one process run, full size, random weights.

One request alone (submit to pixels on the host) at the square size and at the default one, saturation with the share of
the time that the device is busy, a sprint request beside saturating base requests, and the share of the floor: matrix
products alone (docs/performance.md) at the rate that one large product reaches in the same run. Stock means diffusers'
pipelines on the same weights, one request at a time, as their documentation calls them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sana_service.models.load import load_models
from tests.pairs import local_engine
from tests.performance.gpu.bench import (
    DEFAULT,
    SQUARE,
    STEPS,
    Requests,
    Results,
    matrix_rate,
    median_seconds,
    run_part,
    stock_pipelines,
)

TEXT_TOKENS = 40
"""Of a prompt behind its instruction, whose keys are known; of 300 at most."""

FORWARD_TFLOP, DECODE_TFLOP, TEXT_TFLOP_PER_TOKEN = 2.967, 8.369, 4.1e-3
"""Of one transformer row, one picture and one token at 1024x1024."""


def floor_seconds(model: str, rate: float) -> float:
    """Of one square picture, at a rate in TFLOP/s."""
    rows = STEPS[model] * (2 if model == "base" else 1)
    return (rows * FORWARD_TFLOP + DECODE_TFLOP + TEXT_TFLOP_PER_TOKEN * TEXT_TOKENS) / rate


def busy_share(spans: list[tuple[int, int]]) -> float:
    """Share of the time between the first and the last moment that is within one span or more; the edges left out."""
    spans = sorted(spans)
    first, last = spans[0][0], max(end for _, end in spans)
    edge = (last - first) // 10
    begin, end = first + edge, last - edge
    covered, reached = 0, begin
    for start, stop in spans:
        until = min(stop, end)
        if until > reached:
            covered += until - max(start, reached)
            reached = until
    return covered / (end - begin)


def gaps(spans: list[tuple[int, int, str]]) -> dict[str, float]:
    """Milliseconds in which nothing ran, by the names of what ran before and after; the five that cost most."""
    lost: Counter[str] = Counter()
    spans = sorted(spans)
    reached, last = spans[0][1], spans[0][2]
    for start, stop, name in spans:
        if start > reached:
            lost[f"{last[:60]} > {name[:60]}"] += start - reached
        if stop > reached:
            reached, last = stop, name
    return {between: nanoseconds / 1e6 for between, nanoseconds in lost.most_common(5)}


class Speed:
    """An engine and the stock pipelines around the same modules."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.rate = matrix_rate()
        results.note("matrix_tflops", self.rate)
        began = time.perf_counter()
        models = load_models("random", "", "", None, None, "cuda:0", progress=False)
        results.note("load_seconds", time.perf_counter() - began)
        self.stock = stock_pipelines(models)
        self.ours = Requests(local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=256))
        began = time.perf_counter()
        self.ours.engine.start()
        results.note("prepare_seconds", time.perf_counter() - began)

    def draw_stock(self, model: str, size: tuple[int, int], number: int) -> object:
        """One request through the stock pipeline."""
        return self.stock[model](
            f"a red circle on a white background, stock number {number}",
            width=size[0], height=size[1], num_inference_steps=STEPS[model],
        )  # fmt: skip

    def alone(self, model: str, size: tuple[int, int], repeats: int) -> None:
        """Engine, stock, stock, engine."""
        theirs = partial(self.draw_stock, model, size)
        first = self.ours.alone(model, size, repeats)
        stock = statistics.mean([median_seconds(theirs, repeats), median_seconds(theirs, repeats)])
        engine = statistics.mean([first, self.ours.alone(model, size, repeats)])
        artifact = self.ours.draw(model, size)
        stages = {name: round(seconds * 1000, 1) for name, seconds in artifact.timings.items()}
        found = {"engine": engine, "stock": stock, "ratio": engine / stock, "stages_ms": stages}
        self.results.note(f"{model} {size[0]}x{size[1]} alone", found)

    def saturated(self, model: str, size: tuple[int, int], count: int) -> None:
        """Images a second of many requests at once, against those of the stock pipeline one after another."""
        self.ours.draw_all(model, size, count // 4)
        seconds, batch = self.ours.draw_all(model, size, count)
        rate, stock = count / seconds, self.results.values[f"{model} {size[0]}x{size[1]} alone"]["stock"]
        found = {"images_per_second": rate, "times_stock": rate * stock, "batch": batch}
        if size == SQUARE:
            found["share_of_floor"] = rate * floor_seconds(model, self.rate)
        self.results.note(f"{model} {size[0]}x{size[1]} saturated", found)

    def busy(self, model: str, size: tuple[int, int], count: int) -> None:
        """Share of the time at saturation in which a kernel or a copy runs."""
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as watched:
            seconds, _ = self.ours.draw_all(model, size, count)
            torch.cuda.synchronize()
        events: Any = watched.profiler.kineto_results.events()
        spans = [
            (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
            for event in events
            if str(event.device_type()).endswith("CUDA") and event.duration_ns() > 0
        ]
        found = {
            "share": busy_share([(start, stop) for start, stop, _ in spans]), "kernels": len(spans),
            "images_per_second": count / seconds, "idle_ms": gaps(spans),
        }  # fmt: skip
        self.results.note(f"{model} {size[0]}x{size[1]} busy", found)

    def beside(self) -> None:
        """Sprint requests one after another, with the device idle and with base requests saturating it."""
        idle = self.ours.alone("sprint", SQUARE, 9)
        load = threading.Thread(target=self.ours.draw_all, args=("base", SQUARE, 32))
        load.start()
        time.sleep(1)  # into the middle of the load
        busy = self.ours.alone("sprint", SQUARE, 9)
        under_load = load.is_alive()
        load.join()
        self.results.note(
            "sprint beside base", {"idle": idle, "busy": busy, "added": busy - idle, "still_loaded": under_load}
        )


def measure(results: Results) -> None:
    """All of it."""
    speed = Speed(results)
    for model in STEPS:
        speed.alone(model, SQUARE, repeats=5)
    for model in STEPS:
        speed.alone(model, DEFAULT, repeats=3)
    speed.saturated("base", SQUARE, 32)
    speed.saturated("sprint", SQUARE, 96)
    speed.saturated("sprint", DEFAULT, 64)
    speed.beside()
    results.note("peak_gib", torch.cuda.max_memory_allocated() / 2**30)
    results.note("reserved_gib", torch.cuda.memory_reserved() / 2**30)
    speed.busy("base", SQUARE, 8)
    speed.busy("sprint", DEFAULT, 32)
    speed.ours.engine.stop()


if __name__ == "__main__":
    run_part(measure)
