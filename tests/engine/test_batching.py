"""Rows among strangers: each comes out as it does alone, up to rounding.

Stated rounding, float32 on a CPU: no latent differs from that of the same image alone by more than 2e-4 of the largest,
and no pixel by more than 1 of 255, because matrix products of other heights add in another order. Alone, bytes are
equal every time.

The comparison is worth what it catches, so `test_a_mutation_is_caught` breaks the batch in each of these ways and
demands that the comparison fails:

    prompts        the contexts of two rows are exchanged
    guidance sides the negative prompts' rows stand where the positive ones should
    mask           padding of shorter prompts is attended to
    timesteps      rows get each other's timestep
    guidance       rows get each other's guidance scale, embedded (sprint) or applied (base)
    solver lines   rows get each other's coefficients
    solver memory  rows get each other's history
    noise          rows get each other's fresh noise (sprint)
    latents        rows get each other's latents
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sana_service.engine import denoise, solvers, transformer
from sana_service.engine.denoise import Denoiser, DenoiseRow
from sana_service.engine.engine import Engine
from sana_service.engine.flight import Flight
from sana_service.engine.job import Job
from sana_service.engine.stages import Stages
from sana_service.engine.ticket import JobFuture, Ticket
from sana_service.engine.transformer import ContextBatch, SanaForward
from sana_service.models.checkpoint import Models
from sana_service.models.load import load_models
from tests.engine.conftest import BATCHES
from tests.pairs import job, local_engine

ROUNDING, PIXEL_ROUNDING = 2e-4, 1
"""Of the largest latent: strong guidance makes them large, and their differences with them."""

BASE: list[dict[str, Any]] = [
    {"prompt": "a red circle", "seeds": (1,), "num_inference_steps": 3},
    {
        "prompt": "a very large green star on a blue and yellow background, please",
        "seeds": (2,),
        "num_inference_steps": 7,
    },
    {
        "prompt": "",
        "negative_prompt": "red circles and boxes",
        "seeds": (3,),
        "guidance_scale": 12.0,
        "num_inference_steps": 4,
    },
    {
        "prompt": "two hearts",
        "negative_prompt": "blue",
        "seeds": (4, 5),
        "guidance_scale": 1.5,
        "num_inference_steps": 5,
    },
]
SPRINT: list[dict[str, Any]] = [
    {"prompt": "a red circle", "seeds": (1,), "num_inference_steps": 2, "guidance_scale": 1.0},
    {
        "prompt": "a very large green star on a blue background",
        "seeds": (2,),
        "num_inference_steps": 4,
        "guidance_scale": 20.0,
    },
    {"prompt": "", "seeds": (3,), "num_inference_steps": 3, "guidance_scale": 4.5},
    {"prompt": "two hearts", "seeds": (4, 5), "num_inference_steps": 3, "guidance_scale": 8.0},
]
REQUESTS: dict[str, list[dict[str, Any]]] = {
    "base": [{"model": "base", **one} for one in BASE],
    "unguided": [{"model": "base", **one, "guidance_scale": 1.0} for one in BASE],
    "sprint": [{"model": "sprint", **one} for one in SPRINT],
}


@pytest.fixture(scope="session")
def bundled() -> Models:
    return load_models("bundled", "", "", None, None, "cpu", progress=False)


@pytest.fixture(params=["tiny", "bundled"])
def either(request: pytest.FixtureRequest, models: Models, bundled: Models) -> Models:
    return models if request.param == "tiny" else bundled


def rows_of(stages: Stages, one: Job) -> list[DenoiseRow]:
    """A job's rows, before their first step."""
    flight = Flight(Ticket(one, JobFuture(one), time.monotonic()), stages.bin_of(one))
    return stages.begin(flight)


def finish(
    denoiser: Denoiser | Stages, batches: Callable[[list[DenoiseRow]], Sequence[DenoiseRow]], rows: list[DenoiseRow]
) -> None:
    while waiting := [row for row in rows if not row.done]:
        denoiser.step(batches(waiting))


def results(rows: list[DenoiseRow]) -> list[torch.Tensor]:
    """The latents of rows that are done."""
    latents = [row.result for row in rows if row.result is not None]
    assert len(latents) == len(rows)
    return latents


def alone(stages: Stages, request: dict[str, Any]) -> list[torch.Tensor]:
    """The latents of a request's images, each denoised by itself."""
    rows = rows_of(stages, job(**request))
    for row in rows:
        finish(stages, list, [row])
    return results(rows)


def together(stages: Stages, requests: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    """The same with all rows in one batch, those that come later joining a step later each."""
    flights = [rows_of(stages, job(**request)) for request in requests]
    arrived = 0

    def batch(waiting: list[DenoiseRow]) -> list[DenoiseRow]:
        nonlocal arrived
        arrived += 1
        here = {id(row) for rows in flights[:arrived] for row in rows}
        return [row for row in waiting if id(row) in here] or waiting

    finish(stages, batch, [row for rows in flights for row in rows])
    return [results(rows) for rows in flights]


def changed(stages: Stages, requests: list[dict[str, Any]], expected: list[list[torch.Tensor]]) -> list[dict[str, Any]]:
    """The requests of which an image differs from the one alone by more than rounding."""
    return [
        request
        for request, ours, by_itself in zip(requests, together(stages, requests), expected, strict=True)
        for image, reference in zip(ours, by_itself, strict=True)
        if not (image - reference).abs().max() <= ROUNDING * reference.abs().max()
    ]


@torch.inference_mode()
@pytest.mark.parametrize("kind", REQUESTS)
def test_in_every_position_among_strangers_a_row_is_as_alone(kind: str, either: Models):
    stages = Stages(either, None, 0.5)
    requests = REQUESTS[kind]
    expected = [alone(stages, request) for request in requests]
    for turn in range(len(requests)):
        order = [*range(turn, len(requests)), *range(turn)]
        assert changed(stages, [requests[i] for i in order], [expected[i] for i in order]) == []


def roll(values: Any) -> Any:
    """Give each row what belongs to the next one."""
    return values if values is None else values.roll(1, dims=0)


def mutate_forward(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    original = SanaForward.forward

    def mutant(self: SanaForward, *arguments: Any) -> torch.Tensor:
        return original(self, *change(*arguments))

    return lambda patch: patch.setattr(SanaForward, "forward", mutant)


def mutate_advance(position: int) -> Callable[[pytest.MonkeyPatch], None]:
    original = solvers.advance

    def mutant(*arguments: Any) -> Any:
        return original(*(roll(value) if i == position else value for i, value in enumerate(arguments)))

    return lambda patch: patch.setattr(denoise, "advance", mutant)


def mutate_contexts(change: Callable[[ContextBatch], ContextBatch]) -> Callable[[pytest.MonkeyPatch], None]:
    original = transformer.stack_contexts
    return lambda patch: patch.setattr(transformer, "stack_contexts", lambda contexts: change(original(contexts)))


def exchanged(batch: ContextBatch, by: int) -> ContextBatch:
    return ContextBatch(
        batch.keys.roll(by, 1), batch.values.roll(by, 1), None if batch.bias is None else batch.bias.roll(by, 0)
    )


def exchange_sides(patch: pytest.MonkeyPatch) -> None:
    mutate_contexts(lambda batch: exchanged(batch, batch.keys.shape[1] // 2))(patch)


def exchange_applied_guidance(patch: pytest.MonkeyPatch) -> None:
    original = denoise.guidance_scales
    patch.setattr(denoise, "guidance_scales", lambda rows: roll(original(rows)))


MUTATIONS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "prompts": ("base", mutate_contexts(lambda batch: exchanged(batch, 1))),
    "prompts of sprint": ("sprint", mutate_contexts(lambda batch: exchanged(batch, 1))),
    "guidance sides": ("base", exchange_sides),
    "mask": ("base", mutate_contexts(lambda batch: replace(batch, bias=None))),
    "mask of sprint": ("sprint", mutate_contexts(lambda batch: replace(batch, bias=None))),
    "timesteps": ("base", mutate_forward(lambda x, t, g, c: (x, roll(t), g, c))),
    "timesteps of sprint": ("sprint", mutate_forward(lambda x, t, g, c: (x, roll(t), g, c))),
    "guidance": ("base", exchange_applied_guidance),
    "guidance of sprint": ("sprint", mutate_forward(lambda x, t, g, c: (x, t, roll(g), c))),
    "solver lines": ("base", mutate_advance(0)),
    "solver lines of sprint": ("sprint", mutate_advance(0)),
    "solver memory": ("base", mutate_advance(3)),
    "noise": ("sprint", mutate_advance(4)),
    "latents": ("base", mutate_advance(1)),
}


@torch.inference_mode()
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_caught(mutation: str, models: Models, monkeypatch: pytest.MonkeyPatch):
    kind, apply = MUTATIONS[mutation]
    stages = Stages(models, None, 0.5)
    requests = REQUESTS[kind]
    expected = [alone(stages, request) for request in requests]
    assert changed(stages, requests, expected) == []
    apply(monkeypatch)
    assert changed(stages, requests, expected)


@torch.inference_mode()
def test_a_step_that_fails_changes_no_row(models: Models, monkeypatch: pytest.MonkeyPatch):
    stages = Stages(models, None, 0.5)
    rows = rows_of(stages, job(model="sprint", seeds=(1, 2), num_inference_steps=3))
    stages.step(rows)
    before = [(row.step, row.latents.clone(), row.history.clone()) for row in rows]
    with monkeypatch.context() as patch:
        patch.setattr(denoise, "advance", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stages.step(rows)
    for row, (step, latents, history) in zip(rows, before, strict=True):
        assert row.step == step
        assert torch.equal(row.latents, latents)
        assert torch.equal(row.history, history)


@pytest.fixture(scope="module")
def engine_of_bundled(bundled: Models) -> Any:
    engine = local_engine(bundled, safety=None, nsfw_threshold=0.5, max_queue=64, limits=BATCHES)
    engine.start()
    yield engine
    engine.stop()


ALONE: list[dict[str, Any]] = [
    {"model": "base", "num_inference_steps": 4, "prompt": "a red star on a blue background"},
    {"model": "base", "num_inference_steps": 3, "guidance_scale": 1.0, "width": 1344, "height": 768},
    {"model": "sprint", "prompt": "a green heart on a white background"},
]


@pytest.mark.parametrize("request_", ALONE, ids=str)
def test_alone_the_bytes_are_the_same_cold_and_warm_the_first_time_and_the_tenth(
    request_: dict[str, Any], models: Models
):
    """Cold: an engine without cached embeddings, contexts and tables."""
    pictures = []
    for _ in range(2):
        engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8, limits=BATCHES)
        engine.start()
        pictures += [engine.submit(job(**request_)).result(60).pixels for _ in range(5)]
        others = [engine.submit(job(model=model, prompt="a strange box", seeds=(9,))) for model in ("base", "sprint")]
        for other in others:
            other.result(60)
        pictures.append(engine.submit(job(**request_)).result(60).pixels)
        engine.stop()
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_under_load_pictures_are_those_of_the_requests_alone(engine_of_bundled: Engine):
    """Submitted at once, so that they run in batches; pixels may differ by rounding, and by no more."""
    requests = [
        job(**{**one, "seeds": one["seeds"][:1]}) for kind in ("base", "sprint", "unguided") for one in REQUESTS[kind]
    ]
    expected = [engine_of_bundled.submit(request).result(60).pixels for request in requests]
    futures = [engine_of_bundled.submit(replace(request, deadline=time.monotonic() + 60)) for request in requests]
    artifacts = [future.result(60) for future in futures]
    assert max(artifact.batch_images for artifact in artifacts) > 1
    for artifact, reference in zip(artifacts, expected, strict=True):
        assert np.abs(artifact.pixels.astype(int) - reference).max() <= PIXEL_ROUNDING
