"""A GPU is told of a step and ends it later: its time still counts for the endpoint that it was spent on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sana_service.engine import device as devices
from sana_service.engine.denoise import DenoiseRow
from sana_service.engine.errors import JobCancelled
from sana_service.engine.limits import Limits
from sana_service.engine.stages import Stages, StepTime
from sana_service.models.checkpoint import Models
from tests.engine.simulated import Row, SimulatedEngine, SimulatedStages
from tests.pairs import Recorder, job, local_engine

SECONDS: dict[str, float] = {"base": 0.012, "sprint": 0.004}

ONE_IMAGE = Limits(batch_cells={"base": 1, "sprint": 1}, seats={"base": 4, "sprint": 8})
"""No batch: which images meet in one depends on the moment, and an image's last bits on its batch."""


class LateStages(SimulatedStages):
    """One step is under way while the next is asked for, as on a CUDA stream."""

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0
        self._ahead: tuple[StepTime, float] | None = None

    def step(self, rows: list[Row]) -> list[StepTime]:
        key = rows[0].key
        began = max(time.perf_counter(), self._until)
        self._until = began + SECONDS[key.model]
        self.steps += 1
        for row in rows:
            row.step += 1
        launched = (StepTime(key.model, len(rows) * key.forwards, SECONDS[key.model]), self._until)
        before, self._ahead = self._ahead, launched
        return self._wait_for(before)

    def settle(self) -> list[StepTime]:
        last, self._ahead = self._ahead, None
        return self._wait_for(last)

    @staticmethod
    def _wait_for(launched: tuple[StepTime, float] | None) -> list[StepTime]:
        if launched is None:
            return []
        told, end = launched
        time.sleep(max(0.0, end - time.perf_counter()))
        return [told]


def test_each_endpoint_is_charged_for_its_own_steps():
    with SimulatedEngine([LateStages()]) as engine:
        requests: list[dict[str, Any]] = [{"model": "base", "num_inference_steps": 12}]
        requests += [{"model": "sprint", "num_inference_steps": 2}] * 6
        for future in [engine.queue.put(job(**one)) for one in requests]:
            future.result(30)
        costs = engine.loops[0]._costs
        assert costs.step("base", 2) == pytest.approx(SECONDS["base"], rel=0.05)
        assert costs.step("sprint", 1) <= 1.05 * SECONDS["sprint"]


class OrderedStages(LateStages):
    """Remembers what it was asked for; the first step is asked for once two jobs are there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.both_begun = threading.Event()
        self._begun = 0

    def begin(self, flight: Any) -> list[Row]:
        self._begun += 1
        if self._begun == 2:
            self.both_begun.set()
        return super().begin(flight)

    def step(self, rows: list[Row]) -> list[StepTime]:
        assert self.both_begun.wait(30)
        self.asked.append(f"step {rows[0].step + 1}")
        return super().step(rows)

    def settle(self) -> list[StepTime]:
        self.asked.append("settle")
        return super().settle()


def test_the_next_picture_begins_before_the_last_step_of_one_is_waited_for():
    stages = OrderedStages()
    with SimulatedEngine([stages]) as engine:
        # Guided and not: they share no pass.
        both = [engine.queue.put(job(num_inference_steps=1, guidance_scale=scale)) for scale in (5.0, 1.0)]
        for future in both:
            future.result(30)
    assert stages.asked == ["step 1", "step 1", "settle"]


class CancellingStages(LateStages):
    """The client leaves while the second step is under way."""

    def step(self, rows: list[Row]) -> list[StepTime]:
        told = super().step(rows)
        if self.steps == 2:
            rows[0].flight.job.cancel()
        return told


def test_nobody_is_told_of_a_step_that_ends_after_its_job():
    watch = Recorder()
    with SimulatedEngine([CancellingStages()]) as engine:
        future = engine.queue.put(job(num_inference_steps=5, observer=watch))
        assert isinstance(future.exception(30), JobCancelled)
    assert [at.steps_done for at in watch.told if at.stage == "denoise"] == [0, 1]


class FailingStages(OrderedStages):
    """The first step ends with an error, which is told when the second begins or when it is waited for."""

    def step(self, rows: list[Row]) -> list[StepTime]:
        super().step(rows)
        if self.steps == 2:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return []

    def settle(self) -> list[StepTime]:
        if self.steps == 1:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().settle()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_step_that_fails_late_fails_its_jobs_and_leaves_none_behind(jobs: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sana_service.engine.loop.answers", lambda _: False)
    stages = FailingStages()
    if jobs == 1:
        stages.both_begun.set()
    with SimulatedEngine([stages]) as engine:
        # Guided and not: they share no pass.
        futures = [engine.queue.put(job(num_inference_steps=1, guidance_scale=scale)) for scale in (5.0, 1.0)[:jobs]]
        for future in futures:
            assert isinstance(future.exception(30), torch.AcceleratorError)
        assert engine.loops[0].lost
        assert engine.queue.running == engine.queue.waiting == 0


class LateRealStages(Stages):
    """Computes at once and says so a step later, as a GPU may: by then the rows have moved on."""

    _told: StepTime | None = None

    def step(self, rows: Sequence[DenoiseRow]) -> list[StepTime]:
        [told] = super().step(rows)
        before, self._told = self._told, told
        return [] if before is None else [before]

    def settle(self) -> list[StepTime]:
        last, self._told = self._told, None
        return [] if last is None else [last]


def test_pictures_previews_and_progress_are_those_of_steps_that_end_at_once(
    models: Models, monkeypatch: pytest.MonkeyPatch
):
    def drawn() -> tuple[list[np.ndarray], list[Recorder]]:
        engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8, limits=ONE_IMAGE)
        engine.start()
        watches = [Recorder(previews) for previews in (3, 0, 2)]
        futures = [
            engine.submit(job(model=model, seeds=(seed, seed + 9), num_inference_steps=5 + seed, observer=watch))
            for seed, (model, watch) in enumerate(zip(("base", "base", "sprint"), watches, strict=True))
        ]
        pictures = [future.result(60).pixels for future in futures]
        assert engine.stop(timeout_seconds=30)
        return pictures, watches

    pictures, watches = drawn()
    monkeypatch.setattr(devices, "Stages", LateRealStages)
    late_pictures, late_watches = drawn()
    for one, other in zip(pictures, late_pictures, strict=True):
        np.testing.assert_array_equal(one, other)
    for watch, late_watch in zip(watches, late_watches, strict=True):
        assert [at.steps_done for at in watch.told] == [at.steps_done for at in late_watch.told]
        shown = {(one.image, one.index): one.pixels for one in watch.shown}
        late_shown = {(one.image, one.index): one.pixels for one in late_watch.shown}
        assert shown.keys() == late_shown.keys()
        for key, pixels in shown.items():
            np.testing.assert_array_equal(pixels, late_shown[key])
