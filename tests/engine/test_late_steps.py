"""A GPU is told of a step and ends it later: its time still counts for the endpoint that it was spent on."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sana_service.engine.stages import StepTime
from tests.engine.simulated import Row, SimulatedEngine, SimulatedStages
from tests.pairs import job

SECONDS: dict[str, float] = {"base": 0.012, "sprint": 0.004}


class LateStages(SimulatedStages):
    """One step is under way while the next is asked for, as on a CUDA stream."""

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0
        self._ahead: list[tuple[StepTime, float]] = []

    def step(self, rows: list[Row]) -> list[StepTime]:
        key = rows[0].key
        began = max(time.perf_counter(), self._until)
        self._until = began + SECONDS[key.model]
        self.steps += 1
        for row in rows:
            row.step += 1
        launched = (StepTime(key.model, len(rows) * key.forwards, SECONDS[key.model]), self._until)
        running, self._ahead = [*self._ahead, launched], []
        if not any(row.done for row in rows):
            self._ahead = [running.pop()]
        for _, end in running:
            time.sleep(max(0.0, end - time.perf_counter()))
        return [told for told, _ in running]


def test_each_endpoint_is_charged_for_its_own_steps():
    with SimulatedEngine([LateStages()]) as engine:
        requests: list[dict[str, Any]] = [{"model": "base", "num_inference_steps": 12}]
        requests += [{"model": "sprint", "num_inference_steps": 2}] * 6
        for future in [engine.queue.put(job(**one)) for one in requests]:
            future.result(30)
        costs = engine.loops[0]._costs
        assert costs.step("base", 2) == pytest.approx(SECONDS["base"], rel=0.05)
        assert costs.step("sprint", 1) <= 1.05 * SECONDS["sprint"]
