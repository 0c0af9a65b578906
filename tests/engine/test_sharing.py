"""Many jobs on one device: who waits for whom, and who suffers for whom."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from sana_service.engine.engine import Engine
from sana_service.engine.errors import OutOfDeviceMemory
from sana_service.engine.job import Job
from sana_service.engine.stages import Stages
from sana_service.models.checkpoint import Models
from tests.engine.conftest import BATCHES
from tests.pairs import job, local_engine

SECONDS = 60


class Steps:
    """Records every batch that is denoised; can be held, and can fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[Job]] = []
        self.fails: Any = lambda jobs: None
        self.pass_on = threading.Event()
        self.pass_on.set()
        self.began = threading.Event()
        original = Stages.step

        def step(stages: Stages, rows: Any) -> Any:
            jobs = [row.flight.job for row in rows]
            self.batches.append(jobs)
            self.began.set()
            assert self.pass_on.wait(SECONDS)
            self.fails(jobs)
            return original(stages, rows)

        monkeypatch.setattr(Stages, "step", step)

    def models(self) -> list[str]:
        return [jobs[0].model for jobs in self.batches]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def submit_during_the_first_step(engine: Engine, steps: Steps, first: Job, others: list[Job]) -> list[Future[Any]]:
    """All of them, those after the first while its first step runs."""
    steps.pass_on.clear()
    futures = [engine.submit(first)]
    assert steps.began.wait(SECONDS)
    futures += [engine.submit(other) for other in others]
    while engine.queued or not all_encoded(engine):
        threading.Event().wait(0.01)
    steps.pass_on.set()
    return futures


def all_encoded(engine: Engine) -> bool:
    """Whether the text stage has handed everything over."""
    loop: Any
    (loop,) = engine._loops
    return len(loop._begun) + 1 == engine.running


def test_requests_that_differ_in_everything_but_their_size_share_a_pass(steps: Steps, engine: Engine):
    first = job(prompt="a red circle", num_inference_steps=6)
    second = job(prompt="two blue stars", negative_prompt="red", guidance_scale=2.0, seeds=(7,), num_inference_steps=3)
    for future in submit_during_the_first_step(engine, steps, first, [second]):
        future.result(SECONDS)
    assert [len(jobs) for jobs in steps.batches] == [1, 2, 2, 2, 1, 1]
    (artifact,) = [engine.submit(first).result(SECONDS)]
    assert artifact.batch_images == 1.0


def test_the_artifact_says_how_full_its_batches_were(steps: Steps, engine: Engine):
    first, second = job(num_inference_steps=5), job(num_inference_steps=2)
    one, other = submit_during_the_first_step(engine, steps, first, [second])
    assert one.result(SECONDS).batch_images == pytest.approx(7 / 5)
    assert other.result(SECONDS).batch_images == 2.0


@pytest.mark.parametrize("steps_of_sprint", [1, 2])
def test_a_sprint_request_waits_at_most_two_steps_of_base(steps_of_sprint: int, steps: Steps, engine: Engine):
    """The one that runs when it comes, and one in between."""
    base = [job(num_inference_steps=12, seeds=(i,)) for i in range(4)]
    sprint = job(model="sprint", num_inference_steps=steps_of_sprint)
    futures = submit_during_the_first_step(engine, steps, base[0], [*base[1:], sprint])
    futures[-1].result(SECONDS)
    before = steps.models()[: [i for i, model in enumerate(steps.models()) if model == "sprint"][-1]]
    assert before.count("base") <= 2
    for future in futures:
        future.result(SECONDS)


def test_while_one_job_is_denoised_another_is_decoded(models: Models, steps: Steps, monkeypatch: pytest.MonkeyPatch):
    """The decoder is held until a step of the other job has run, which would be a deadlock without overlap."""
    decoding, stepped = threading.Event(), threading.Event()
    vae = models.checkpoints["base"].vae
    decode = vae.decode

    def held_decode(*arguments: Any, **options: Any) -> Any:
        decoding.set()
        assert stepped.wait(SECONDS)
        return decode(*arguments, **options)

    monkeypatch.setattr(vae, "decode", held_decode)

    def after_the_decoder_began(jobs: list[Job]) -> None:
        if jobs[0].model == "base" and decoding.wait(SECONDS):
            stepped.set()

    steps.fails = after_the_decoder_began
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8, limits=BATCHES)
    engine.start()
    futures = [engine.submit(job(model="sprint", num_inference_steps=1)), engine.submit(job(num_inference_steps=3))]
    for future in futures:
        assert future.result(SECONDS).pixels.any()
    assert engine.stop()


def test_a_job_that_breaks_its_batch_fails_alone(steps: Steps, engine: Engine):
    good, bad = [job(seeds=(i,), num_inference_steps=3) for i in range(2)], job(prompt="bad", num_inference_steps=3)
    expected = [engine.submit(one).result(SECONDS).pixels for one in good]

    def fail(jobs: list[Job]) -> None:
        if any(one.prompt == "bad" for one in jobs):
            raise RuntimeError("a kernel failed")

    steps.fails = fail
    steps.began.clear()
    first, broken, second = submit_during_the_first_step(engine, steps, good[0], [bad, good[1]])
    assert str(broken.exception(SECONDS)) == "a kernel failed"
    for future, reference in zip((first, second), expected, strict=True):
        assert np.abs(future.result(SECONDS).pixels.astype(int) - reference).max() <= 1


def test_a_batch_that_does_not_fit_goes_on_in_halves(steps: Steps, engine: Engine):
    jobs = [job(seeds=(i,), num_inference_steps=2) for i in range(3)]
    expected = [engine.submit(one).result(SECONDS).pixels for one in jobs]

    def fits_one(jobs: list[Job]) -> None:
        if len(jobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    steps.fails = fits_one
    steps.began.clear()
    futures = submit_during_the_first_step(engine, steps, jobs[0], jobs[1:])
    for future, reference in zip(futures, expected, strict=True):
        np.testing.assert_array_equal(future.result(SECONDS).pixels, reference)


@pytest.mark.parametrize("stage", ["encode_text", "start_rows", "step", "decode", "flag", "resize"])
def test_out_of_memory_is_tried_again_with_the_device_to_itself(
    stage: str, models: Models, monkeypatch: pytest.MonkeyPatch
):
    """Once is a neighbour's fault; twice is the job's own, and its neighbours go on."""
    failures = {"once": 1, "always": 10}
    original = getattr(Stages, stage)

    def short(stages: Stages, *arguments: Any, **options: Any) -> Any:
        subject = arguments[0]
        if stage == "step":
            subject = subject[0].flight
        elif stage in {"decode", "resize"}:
            subject = subject.flight
        prompt = subject.prompt if isinstance(subject, Job) else subject.job.prompt
        if failures.get(prompt, 0):
            failures[prompt] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(stages, *arguments, **options)

    monkeypatch.setattr(Stages, stage, short)
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8, limits=BATCHES)
    engine.start()
    once, always, other = (engine.submit(job(prompt=prompt, num_inference_steps=1)) for prompt in (*failures, "other"))
    assert isinstance(always.exception(SECONDS), OutOfDeviceMemory)
    assert once.result(SECONDS).pixels.any()
    assert other.result(SECONDS).pixels.any()
    assert engine.stop()
