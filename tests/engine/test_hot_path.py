"""What is fixed when the models are loaded is not looked up again for each job, step or picture."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from transformers import PreTrainedModel

from sana_service.engine.flight import Flight, Shot
from sana_service.engine.stages import Stages
from sana_service.engine.ticket import JobFuture, Ticket
from sana_service.models.checkpoint import Models
from tests.pairs import job


def walked(self: Any) -> Any:
    raise AssertionError("all of the model's parameters are looked at")


@torch.inference_mode()
@pytest.mark.parametrize("model", ["base", "sprint"])
def test_no_job_walks_through_a_models_parameters(models: Models, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """`dtype` and `device` of a full-size transformer take a millisecond of Python."""
    stages = Stages(models, None, 0.5)
    stages.prepare({"base": 1024, "sprint": 1024})
    for kind in (ModelMixin, PreTrainedModel):
        for name in ("dtype", "device"):
            monkeypatch.setattr(kind, name, property(walked))
    request = job(model=model, width=512, height=512, negative_prompt="a box")
    flight = Flight(Ticket(request, JobFuture(request), time.monotonic()), stages.bin_of(request))
    rows = stages.begin(flight)
    for _ in range(request.num_inference_steps):
        stages.step(rows)
    assert rows[0].result is not None
    # A corner is enough.
    shot = Shot(flight, 0, rows[0].result[:, :4, :4])
    image = stages.decode(shot)
    assert image.shape == (3, 128, 128)
    assert image.std() > 0
