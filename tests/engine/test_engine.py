"""The engine on real, quick models: order, cancellation, deadlines, failures, black pictures, draining."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from sana_service.engine.engine import Engine
from sana_service.engine.errors import (
    DeadlineExceeded,
    JobCancelled,
    NotFinite,
    NotReady,
    OutOfDeviceMemory,
    QueueFull,
)
from sana_service.engine.faults import answers, is_out_of_memory
from sana_service.engine.limits import Limits
from sana_service.models.checkpoint import Models
from tests.pairs import job, local_engine, with_checkpoint

SECONDS = 60

ONE_SEAT = Limits(batch_cells={"base": 1, "sprint": 1}, seats={"base": 1, "sprint": 1})
"""One image of each endpoint on the device: the others wait in the queue."""


@contextmanager
def running(models: Models, **options: Any) -> Iterator[Engine]:
    engine = local_engine(models, **{"safety": None, "nsfw_threshold": 0.5, "max_queue": 8, **options})
    engine.start()
    try:
        yield engine
    finally:
        assert engine.stop(timeout_seconds=SECONDS)


@contextmanager
def at_forward(models: Models, model: str, number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something when a transformer is called for the n-th time; yields the calls, counted from 1."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            action()

    handle = models.checkpoints[model].transformer.patch_embed.register_forward_pre_hook(hook)  # type: ignore[index]
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def held(models: Models, engine: Engine) -> Iterator[Future[Any]]:
    """An engine whose device is busy with one job until the block ends."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        release.wait(SECONDS)

    with at_forward(models, "sprint", 1, hold):
        future = engine.submit(job(model="sprint", num_inference_steps=1))
        assert entered.wait(SECONDS)
        try:
            yield future
        finally:
            release.set()
            wait([future], SECONDS)


def error_of(future: Future[Any]) -> BaseException | None:
    return future.exception(timeout=SECONDS)


def works(engine: Engine) -> bool:
    artifact = engine.submit(job(model="sprint", num_inference_steps=1)).result(timeout=SECONDS)
    return artifact.pixels.shape == (1, 1024, 1024, 3) and artifact.pixels.std() > 10


def test_an_artifact_has_pixels_flags_and_a_time_for_each_stage(engine):
    artifact = engine.submit(job(width=1000, height=300, seeds=(1, 2))).result(timeout=SECONDS)
    assert artifact.pixels.shape == (2, 300, 1000, 3)
    assert artifact.pixels.dtype == np.uint8
    assert artifact.flagged == (False, False)
    assert set(artifact.timings) == {"queue", "text", "denoise", "decode", "safety", "resize"}
    assert all(0 <= seconds < SECONDS for seconds in artifact.timings.values())
    assert artifact.timings["denoise"] > 0


@pytest.mark.parametrize(("width", "height"), [(64, 14142), (14142, 64), (65, 67)])
def test_extreme_sizes_come_out_exactly(width, height, engine):
    future = engine.submit(job(model="sprint", num_inference_steps=1, width=width, height=height))
    pixels = future.result(timeout=SECONDS).pixels
    assert pixels.shape == (1, height, width, 3)
    assert pixels.std() > 5


def test_jobs_end_in_order(models):
    ended: list[int] = []
    with running(models, limits=ONE_SEAT) as engine:
        with held(models, engine):
            futures = [engine.submit(job(model="sprint", num_inference_steps=1, seeds=(i,))) for i in range(4)]
            for future in futures:
                future.add_done_callback(lambda future: ended.append(futures.index(future)))
            assert (engine.queued, engine.running) == (4, 1)
        assert engine.drain(timeout_seconds=SECONDS)
    assert ended == [0, 1, 2, 3]
    assert futures[3].result().timings["queue"] > futures[0].result().timings["queue"]


@pytest.mark.parametrize(("model", "images"), [("base", 1), ("sprint", 2)])
def test_a_cancelled_job_leaves_within_a_step(model, images, models, engine):
    request = job(model=model, num_inference_steps=20, seeds=tuple(range(images)))
    with at_forward(models, model, 3, request.cancel) as calls:
        assert isinstance(error_of(engine.submit(request)), JobCancelled)
    assert calls == [1, 2, 3]
    assert works(engine)


def test_cancelling_the_future_cancels_the_job_which_still_ends(models, engine):
    request = job(num_inference_steps=20)
    future = engine.submit(request)
    assert future.cancel() is False
    assert isinstance(error_of(future), JobCancelled)
    assert request.cancelled


def test_a_deadline_that_passes_ends_the_job_within_a_step(models, engine):
    request = job(num_inference_steps=20, deadline=time.monotonic() + 1.5)

    def outlast() -> None:
        while time.monotonic() < request.deadline:
            threading.Event().wait(0.01)

    with at_forward(models, "base", 2, outlast) as calls:
        assert isinstance(error_of(engine.submit(request)), DeadlineExceeded)
    assert calls == [1, 2]
    assert works(engine)


def test_waiting_jobs_that_are_cancelled_or_expired_end_while_another_runs(models):
    """They end at the next step of the running job, and their room is free before that."""
    reached: list[Future[Any]] = []
    with at_forward(models, "base", 2, lambda: wait(reached, 0.2)) as calls, running(models, limits=ONE_SEAT) as engine:
        with held(models, engine):
            runs = engine.submit(job(num_inference_steps=3))
            cancelled, expired = job(), job(deadline=time.monotonic() + 0.01)
            reached += [engine.submit(cancelled), engine.submit(expired)]
            cancelled.cancel()
            while time.monotonic() < expired.deadline:
                threading.Event().wait(0.01)
        runs.result(timeout=SECONDS)
        assert isinstance(error_of(reached[0]), JobCancelled)
        assert isinstance(error_of(reached[1]), DeadlineExceeded)
    assert calls == [1, 2, 3]


def test_a_full_queue_refuses_and_a_cancelled_job_makes_room(models):
    with running(models, max_queue=2, limits=ONE_SEAT) as engine:
        with held(models, engine):
            waiting = [job(model="sprint", num_inference_steps=1) for _ in range(2)]
            futures = [engine.submit(one) for one in waiting]
            with pytest.raises(QueueFull) as refused:
                engine.submit(job(model="sprint"))
            assert refused.value.retry_after_seconds >= 1
            waiting[0].cancel()
            futures.append(engine.submit(job(model="sprint", num_inference_steps=1)))
        assert isinstance(error_of(futures[0]), JobCancelled)
        assert [error_of(future) for future in futures[1:]] == [None, None]


def cpu_out_of_memory() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def cuda_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def host_out_of_memory() -> None:
    np.zeros(2**60, np.uint8)


@pytest.mark.parametrize("failure", [cpu_out_of_memory, cuda_out_of_memory, host_out_of_memory])
def test_out_of_memory_ends_its_job_alone_and_frees_what_it_held(failure, models, engine, monkeypatch):
    held_tensors: list[Any] = []
    vae = models.checkpoints["base"].vae
    decode = vae.decode

    def fail(latents: torch.Tensor, **_: Any) -> None:
        import weakref

        held_tensors.append(weakref.ref(latents))
        failure()

    monkeypatch.setattr(vae, "decode", fail)
    monkeypatch.setattr(vae, "tiled_decode", fail)
    first = engine.submit(job())
    error = error_of(first)
    assert isinstance(error, OutOfDeviceMemory)
    assert error.__cause__ is not None
    # Among others, then alone, then in tiles.
    assert [reference() for reference in held_tensors] == [None] * 3
    assert engine.shortages() == {"text": 0, "denoise": 0, "decode": 3, "finish": 0}
    monkeypatch.setattr(vae, "decode", decode)
    assert works(engine)


def test_any_other_exception_reaches_the_future_and_the_loop_lives_on(models, engine, monkeypatch):
    vae = models.checkpoints["base"].vae
    with monkeypatch.context() as patch:
        patch.setattr(vae, "decode", lambda *_, **__: 1 / 0)
        assert isinstance(error_of(engine.submit(job())), ZeroDivisionError)
        patch.setattr(vae, "decode", lambda *_, **__: exec("raise SystemExit"))
        assert isinstance(error_of(engine.submit(job())), SystemExit)
    assert works(engine)
    assert engine.healthy


@pytest.mark.parametrize("alive", [True, False])
def test_a_device_that_no_longer_answers_is_lost(alive, models, monkeypatch):
    """CUDA's sticky errors; one that ends a single call is any other exception."""

    def fail(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("sana_service.engine.loop.answers", lambda device: alive)
    monkeypatch.setattr(models.checkpoints["base"].vae, "decode", fail)
    with running(models) as engine:
        with held(models, engine) as broken:
            after = engine.submit(job())
            assert engine.healthy
        assert isinstance(error_of(broken), torch.AcceleratorError)
        assert isinstance(error_of(after), torch.AcceleratorError if alive else NotReady)
        assert engine.healthy is alive
        assert engine.accepting is alive
        if not alive:
            with pytest.raises(NotReady):
                engine.submit(job())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_cpu_still_answers():
    assert answers(torch.device("cpu"))


def test_weights_that_are_no_numbers_end_in_not_finite(models):
    transformer = deepcopy(models.checkpoints["base"].transformer)
    torch.nn.init.constant_(transformer.proj_out.weight, float("nan"))
    with running(with_checkpoint(models, transformer=transformer)) as engine:
        error = error_of(engine.submit(job()))
        assert isinstance(error, NotFinite)
        assert "latents" in str(error)
        assert works(engine)


def test_a_decoder_that_overflows_ends_in_not_finite(models):
    vae = deepcopy(models.checkpoints["base"].vae)
    torch.nn.init.constant_(vae.decoder.conv_out.conv.bias, float("inf"))
    with running(with_checkpoint(models, vae=vae)) as engine:
        error = error_of(engine.submit(job()))
        assert isinstance(error, NotFinite)
        assert "pixels" in str(error)


class Reviewer:
    """A safety model with given answers, that keeps the shapes of what it saw."""

    def __init__(self, *probabilities: float) -> None:
        self.answers = probabilities
        self.seen: list[tuple[int, ...]] = []

    def probabilities(self, images: torch.Tensor) -> list[float]:
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        self.seen.append(tuple(images.shape))
        return [self.answers[(len(self.seen) - 1) % len(self.answers)]] * len(images)


def test_pictures_over_the_threshold_become_black(models):
    """Strictly over it; a probability that is no number counts as over."""
    reviewer = Reviewer(0.7, 0.700001, float("nan"), 0.0)
    with running(models, safety=reviewer, nsfw_threshold=0.7) as engine:
        future = engine.submit(job(model="sprint", seeds=(1, 2, 3, 4), width=200, height=100))
        artifact = future.result(timeout=SECONDS)
    assert artifact.flagged == (False, True, True, False)
    assert [bool(pixels.any()) for pixels in artifact.pixels] == [True, False, False, True]
    assert artifact.pixels.shape == (4, 100, 200, 3)
    assert reviewer.seen == [(1, 3, 704, 1408)] * 4


def test_the_checker_is_not_asked_where_the_job_does_without_it(models):
    reviewer = Reviewer(1.0)
    with running(models, safety=reviewer) as engine:
        artifact = engine.submit(job(model="sprint", check_safety=False)).result(timeout=SECONDS)
    assert artifact.flagged == (False,)
    assert artifact.pixels.any()
    assert reviewer.seen == []


def test_nothing_is_taken_before_the_start_or_after_the_stop(models):
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8)
    assert not engine.accepting
    with pytest.raises(NotReady):
        engine.submit(job())
    engine.start()
    assert engine.accepting
    assert works(engine)
    assert engine.stop(timeout_seconds=SECONDS)
    assert engine.stop(timeout_seconds=SECONDS)
    assert not engine.accepting
    with pytest.raises(NotReady):
        engine.submit(job())


def test_an_engine_that_never_started_stops(models):
    assert local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8).stop(timeout_seconds=1)


def test_draining_finishes_what_was_accepted_and_takes_no_more(models):
    with running(models) as engine:
        with held(models, engine) as first:
            second = engine.submit(job(model="sprint", num_inference_steps=1))
            assert engine.drain(timeout_seconds=0.05) is False
            with pytest.raises(NotReady):
                engine.submit(job())
            assert not second.done()
        assert engine.drain(timeout_seconds=SECONDS) is True
        assert first.done()
        assert second.done()
        assert second.result().pixels.any()
        assert (engine.queued, engine.running) == (0, 0)


def test_stopping_ends_the_running_job_within_a_step_and_the_waiting_ones(models):
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8, limits=ONE_SEAT)
    engine.start()
    stopped: list[bool] = []
    stopper = threading.Thread(target=lambda: stopped.append(engine.stop(timeout_seconds=SECONDS)))

    def stop() -> None:
        stopper.start()
        error_of(queued[0])

    queued: list[Future[Any]] = []
    with at_forward(models, "base", 2, stop) as calls:
        with held(models, engine):
            runs = engine.submit(job(num_inference_steps=20))
            queued.append(engine.submit(job()))
        assert isinstance(error_of(runs), NotReady)
        assert isinstance(error_of(queued[0]), NotReady)
    stopper.join(SECONDS)
    assert stopped == [True]
    assert len(calls) <= 3
