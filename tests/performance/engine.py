"""The engine against the stock pipelines, and what the engine and HTTP add to the compute: `make bench-engine`.

On a CPU with the bundled model, in one process run: 32 unlike requests of both endpoints through the engine at once and
through diffusers' pipelines one after another, in the order A B B A, the stock with all cores and the engine as the
service runs it. Before that, on a served copy, the time of a request that its stages do not account for. The last line
is JSON; the exit code says whether the goals are met.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from sana_service.engine.engine import Engine
from sana_service.engine.job import Job
from sana_service.models.load import load_models
from tests.engine.simulated import SimulatedEngine, SimulatedStages
from tests.pairs import BundledStock, job, local_engine
from tests.performance.overhead import GOAL_OVERHEAD_SECONDS, bare_seconds, outside_stages
from tests.services import server

REQUESTS = 32
GOAL_RATIO = 0.8
CORES = len(os.sched_getaffinity(0))


def mixed_requests() -> list[Job]:
    """Half of each endpoint; prompts, sizes, steps and guidance differ."""
    dice = random.Random(0)
    requests = []
    for number in range(REQUESTS):
        width, height = dice.choice([(1024, 1024), (1344, 768), (768, 1344)])
        colour, shape = dice.choice(["red", "blue", "green", "yellow"]), dice.choice(["circle", "box", "star", "heart"])
        shared = {"prompt": f"a {colour} {shape}", "seeds": (number,), "width": width, "height": height}
        if number % 2:
            shared |= {"model": "sprint", "guidance_scale": dice.choice([2.0, 4.5])}
        else:
            shared |= {"num_inference_steps": dice.choice([12, 18]), "guidance_scale": dice.choice([3.0, 5.0])}
        requests.append(job(**shared, deadline=time.monotonic() + 3600))
    return requests


def engine_seconds(engine: Engine, requests: list[Job]) -> float:
    """All at once."""
    started = time.perf_counter()
    for future in [engine.submit(request) for request in requests]:
        future.result()
    return time.perf_counter() - started


def stock_seconds(stock: BundledStock, requests: list[Job]) -> float:
    """One after another, with all cores."""
    torch.set_num_threads(CORES)
    started = time.perf_counter()
    for request in requests:
        stock.draw(request)
    seconds = time.perf_counter() - started
    torch.set_num_threads(max(1, CORES - 1))
    return seconds


def compare_with_stock() -> dict[str, float]:
    torch.set_num_threads(max(1, CORES - 1))
    models = load_models("bundled", "", "", None, None, "cpu", progress=False)
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=REQUESTS)
    engine.start()
    stock, requests = BundledStock(models), mixed_requests()
    engine_seconds(engine, requests[:2])
    ours, theirs = [engine_seconds(engine, requests)], [stock_seconds(stock, requests)]
    theirs.append(stock_seconds(stock, requests))
    ours.append(engine_seconds(engine, requests))
    engine.stop()
    print(f"{REQUESTS} mixed requests: engine {ours} s, stock pipelines one after another {theirs} s", flush=True)
    return {"engine_seconds": sum(ours), "stock_seconds": sum(theirs), "ratio": sum(ours) / sum(theirs)}


def loop_overhead(model: str, steps: int, count: int = 300) -> float:
    """Seconds a job of the queue, the batcher and the hand-overs, with stages that take no time."""
    requests = [job(model=model, num_inference_steps=steps, width=64, height=64) for _ in range(count)]
    with SimulatedEngine([SimulatedStages()]) as engine:
        started = time.perf_counter()
        for request in requests:
            engine.queue.put(request).result(30)
        return (time.perf_counter() - started) / count


def http_overhead(count: int = 40) -> dict[str, dict[str, float]]:
    """Seconds of a request outside its stages on a served copy, medians: HTTP, validation, queue and hand-overs.

    By the client's clock less what a bare application takes with the same client, and by the server's.
    """
    overheads: dict[str, dict[str, float]] = {}
    bare = bare_seconds()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), {"SANA_MODELS": "bundled"}) as running:
        connection = http.client.HTTPConnection(urlsplit(running.url).netloc)
        for route in ("/sprint", "/generate"):
            samples = [outside_stages(connection, route) for _ in range(count)]
            by_server, by_client = (statistics.median(clock) for clock in zip(*samples, strict=True))
            overheads[route] = {"server_clock": by_server, "added_to_a_bare_answer": by_client - bare}
            print(f"{route}: seconds outside its stages, medians of {count}: {overheads[route]}", flush=True)
        connection.close()
    return overheads


def main() -> int:
    result: dict[str, Any] = {"cores": CORES, "torch": torch.__version__}
    result["loop_overhead_seconds"] = {"generate": loop_overhead("base", 18), "sprint": loop_overhead("sprint", 2)}
    print("queue, batcher and hand-overs:", result["loop_overhead_seconds"], flush=True)
    result["http_overhead_seconds"] = http_overhead()
    result |= compare_with_stock()
    slowest = max(clocks["added_to_a_bare_answer"] for clocks in result["http_overhead_seconds"].values())
    met = result["ratio"] <= GOAL_RATIO and slowest <= GOAL_OVERHEAD_SECONDS
    result["goals_met"] = met
    print(json.dumps(result))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
