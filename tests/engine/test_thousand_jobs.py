"""A thousand jobs with cancellations, deadlines and too little memory: each ends once, and survivors look the same."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sana_service.engine import batcher
from sana_service.engine.costs import Costs
from sana_service.engine.denoise import Denoiser
from sana_service.engine.engine import Engine
from sana_service.engine.errors import DeadlineExceeded, DeadlineOutOfReach, JobCancelled, OutOfDeviceMemory, QueueFull
from sana_service.engine.job import Job
from sana_service.models.checkpoint import Models
from tests.engine.conftest import BATCHES
from tests.pairs import job, local_engine

JOBS, CLIENTS = 1000, 4
PICTURE = {"width": 64, "height": 64}
REQUESTS: list[dict[str, Any]] = [
    {"model": "base", "prompt": "a red circle", "num_inference_steps": 2, "seeds": (1,)},
    {"model": "base", "prompt": "a very large blue star", "num_inference_steps": 5, "seeds": (2,)},
    {"model": "base", "prompt": "two hearts", "negative_prompt": "a box", "num_inference_steps": 3, "seeds": (3, 4)},
    {"model": "base", "prompt": "a ring", "guidance_scale": 1.0, "num_inference_steps": 3, "seeds": (5,)},
    {"model": "sprint", "prompt": "a red circle", "seeds": (6,)},
    {"model": "sprint", "prompt": "a green box", "guidance_scale": 9.0, "num_inference_steps": 3, "seeds": (7, 8, 9)},
    {"model": "sprint", "prompt": "too much", "num_inference_steps": 1, "seeds": (10,)},
]
HOPELESS = 6
"""The request that does not fit even alone."""


@pytest.fixture
def shortages(models: Models, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Memory runs out at random, and always for the hopeless request; a corner of each picture is decoded."""
    dice = random.Random(0)
    counts: Counter[str] = Counter()
    step = Denoiser.step
    for checkpoint in models.checkpoints.values():
        decode = type(checkpoint.vae).decode.__get__(checkpoint.vae)

        def corner(latents: torch.Tensor, *, decode: Any = decode, **options: Any) -> Any:
            return decode(latents[..., :2, :2].contiguous(), **options)

        monkeypatch.setattr(checkpoint.vae, "decode", corner)
        monkeypatch.setattr(checkpoint.vae, "tiled_decode", corner)

    def sometimes_short(self: Denoiser, rows: Any) -> None:
        if any(row.flight.job.prompt == "too much" for row in rows):
            counts["hopeless"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        if counts["on"] and dice.random() < 0.08:
            counts["batches"] += len(rows) > 1
            counts["single"] += len(rows) == 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, rows)

    monkeypatch.setattr(Denoiser, "step", sometimes_short)
    # Predictions that are never put right let in jobs whose deadlines pass on the way.
    monkeypatch.setattr(Costs, "observe_job", lambda *_: None)
    monkeypatch.setattr(batcher, "STEPS_BEFORE_GROWTH", 3)  # or hardly a batch would be left to fail
    return counts


class Crowd:
    """Clients that submit, change their mind, or have no time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ended: list[Future[Any]] = []
        self.submitted: dict[Future[Any], int] = {}
        self.refused = 0
        self.lock = threading.Lock()

    def run(self) -> None:
        clients = [threading.Thread(target=self.client, args=(seed,)) for seed in range(CLIENTS)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()

    def client(self, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(JOBS // CLIENTS):
            number = dice.choices(range(len(REQUESTS)), [2, 1, 1, 1, 4, 1, 1])[0]
            request = job(**REQUESTS[number], **PICTURE)
            # What is predicted to end just in time may be accepted and end too late.
            tight = self.engine.predicted_wait(request.model) + 0.1
            lifetime = dice.choices([0.0, tight, 60.0], [1, 2, 17])[0]
            request = replace(request, deadline=time.monotonic() + lifetime)
            future = self.submit(request)
            if future is None:
                continue
            future.add_done_callback(self.ended.append)
            with self.lock:
                self.submitted[future] = number
            if dice.random() < 0.2:
                threading.Timer(dice.random() * 0.1, request.cancel).start()

    def submit(self, request: Job) -> Future[Any] | None:
        while True:
            try:
                return self.engine.submit(request)
            except DeadlineOutOfReach:
                with self.lock:
                    self.refused += 1
                return None
            except QueueFull:
                time.sleep(0.02)


def test_a_thousand_jobs_each_end_once_and_no_survivors_picture_changes(models: Models, shortages: Counter[str]):
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=40, limits=BATCHES)
    engine.start()
    expected = {
        number: engine.submit(job(**request, **PICTURE)).result(60).pixels
        for number, request in enumerate(REQUESTS)
        if number != HOPELESS
    }
    shortages["on"] = 1
    crowd = Crowd(engine)
    crowd.run()
    assert not wait(crowd.submitted, 120).not_done
    assert engine.drain(60)
    assert engine.stop(60)
    assert len(crowd.submitted) + crowd.refused == JOBS
    assert sorted(map(id, crowd.ended)) == sorted(map(id, crowd.submitted))
    errors = {future: future.exception() for future in crowd.submitted}
    kinds = {type(error) for error in errors.values()}
    assert kinds == {type(None), JobCancelled, DeadlineExceeded, OutOfDeviceMemory}
    assert shortages["batches"] > 10
    assert shortages["single"] > 10
    survivors = {future: number for future, number in crowd.submitted.items() if errors[future] is None}
    assert len(survivors) > JOBS / 2
    assert HOPELESS not in survivors.values()
    for future, number in survivors.items():
        assert np.abs(future.result().pixels.astype(int) - expected[number]).max() <= 1
