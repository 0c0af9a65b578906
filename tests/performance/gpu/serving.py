"""Whole HTTP requests to the built Bento, with a full-size pair in the hub's layout, against the reference's way.

The pair has random weights and lies on this machine's disk; `SANA_MODELS=hub` loads it as it loads the real one. First
within this process: which parts are shared, how long loading takes, and in how much memory. Then the Bento is built and
served from another folder: a server whose kernels nobody has compiled yet, and another one after it. Seconds until each
is ready, a picture from both endpoints by the BentoML client, and requests one after another at the default size, JPEG,
with the safety check, in turns with the reference document's way (loadtests/baselines/reference.py) on the same files.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch

from loadtests.coldstart import started, wait_for
from sana_service.models.load import load_models
from tests.performance.gpu.bench import ROOT, STEPS, Results, run_part

READY_SECONDS = 240.0
REPEATS = 7
SERVE = "bentoml serve sana:latest --port {port}"
REFERENCE = "uvicorn loadtests.baselines.reference:app --port {port}"


def measure(results: Results) -> None:
    """All of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tests.performance.gpu.hub_pair", str(folder)], check=True, cwd=ROOT)
        results.note("write_seconds", time.perf_counter() - began)
        _load(results, folder)
        _build(results, folder)
        with _server(results, folder, "cold") as (url, _):
            results.note("first picture by the BentoML client", _client(url))
        with _server(results, folder, "warm") as (url, process), _reference(results, folder) as reference:
            for endpoint in STEPS:
                _in_turns(results, endpoint, url, reference)
            results.note("server's GiB", _device_gib(process.pid))


def _build(results: Results, folder: Path) -> None:
    """The Bento, into a store of its own."""
    began = time.perf_counter()
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"], cwd=ROOT, env=_of_the_bento(folder),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        raise RuntimeError(f"the Bento was not built: {built.stderr[-2000:]}")
    results.note("Bento", {"tag": built.stdout.strip().splitlines()[-1], "seconds": time.perf_counter() - began})


def _of_the_bento(folder: Path) -> dict[str, str]:
    return {**os.environ, "BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}


def _load(results: Results, folder: Path) -> None:
    """Through `hub`, in this process."""
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    models = load_models("hub", str(folder / "base"), str(folder / "sprint"), None, None, "cuda:0", progress=False)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    base, sprint = (models.checkpoints[name] for name in ("base", "sprint"))
    found = {
        "seconds": seconds,
        "gib": torch.cuda.memory_allocated() / 2**30,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "one_vae": base.vae is sprint.vae,
        "two_transformers": base.transformer is not sprint.transformer,
        "text_encoder": type(models.text_encoder).__name__,
    }
    del models, base, sprint
    torch.cuda.empty_cache()
    results.note("hub", found)


@contextlib.contextmanager
def _server(results: Results, folder: Path, which: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service, ready; both calls share Triton's cache, which is empty the first time."""
    variables = {
        **_of_the_bento(folder),
        "SANA_MODELS": "hub",
        "SANA_BASE_MODEL": str(folder / "base"),
        "SANA_SPRINT_MODEL": str(folder / "sprint"),
        "SANA_SAFETY_MODEL": str(folder / "safety"),
        "SANA_STORAGE_URL": (folder / "files").as_uri(),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    log = folder / f"{which}.log"
    began = time.perf_counter()
    with started(SERVE, folder, log, variables) as (url, process):
        try:
            wait_for(url, process, "/readyz", READY_SECONDS)
        except Exception:
            print(log.read_text()[-6000:], flush=True)
            raise
        results.note(f"ready, {which}", time.perf_counter() - began)
        yield url, process


@contextlib.contextmanager
def _reference(results: Results, folder: Path) -> Iterator[str]:
    variables = {
        **os.environ,
        "BASELINE_MODELS": f"{folder / 'base'},{folder / 'sprint'}",
        "BASELINE_SAFETY": str(folder / "safety"),
    }
    log = folder / "reference.log"
    with started(REFERENCE, ROOT, log, variables) as (url, process):
        try:
            results.note("reference ready", wait_for(url, process, "/readyz", READY_SECONDS))
        except Exception:
            print(log.read_text()[-6000:], flush=True)
            raise
        yield url


def _client(url: str) -> dict[str, object]:
    """Both endpoints through the BentoML client, with the defaults."""
    import bentoml

    found: dict[str, object] = {}
    with bentoml.SyncHTTPClient(url, timeout=120) as client:
        for route in ("generate", "sprint"):
            began = time.perf_counter()
            answer = client.call(route, prompt="a red circle", seed=7)
            image = answer["images"][0]
            found[route] = {
                "seconds": time.perf_counter() - began,
                "size": [image["width"], image["height"]],
                "bytes": len(httpx.get(image["url"]).content),
                "timings": answer["timings"],
            }
    return found


def _in_turns(results: Results, model: str, ours: str, reference: str) -> None:
    """Medians of the service, the reference's way twice, and the service again."""
    route = "generate" if model == "base" else "sprint"
    number = 0

    def median(url: str) -> float:
        nonlocal number
        seconds = []
        with httpx.Client(base_url=url, timeout=120) as http:
            for _ in range(REPEATS + 1):
                number += 1
                began = time.perf_counter()
                answer = http.post(f"/{route}", json={"prompt": f"a red circle, number {number}"})
                seconds.append(time.perf_counter() - began)
                answer.raise_for_status()
                timing = answer.headers.get("server-timing", "")
        stages[url] = timing
        return statistics.median(seconds[1:])

    stages: dict[str, str] = {}
    first = median(ours)
    theirs = statistics.mean([median(reference), median(reference)])
    mine = statistics.mean([first, median(ours)])
    found = {"engine": mine, "reference": theirs, "ratio": mine / theirs, "server_timing": stages[ours]}
    results.note(f"{model} HTTP 3840x2160 JPEG", found)


def _device_gib(pid: int) -> float | None:
    """What the server's processes hold of the GPU, as its driver says."""
    import psutil
    import pynvml  # type: ignore[import-untyped]

    family = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    pynvml.nvmlInit()
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
    held = [one.usedGpuMemory for one in running if one.pid in family and one.usedGpuMemory]
    return sum(held) / 2**30 if held else None


if __name__ == "__main__":
    run_part(measure)
