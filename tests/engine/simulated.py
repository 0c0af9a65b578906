"""A device without a model: stages of known duration, so that what is left is the engine's own time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sana_service.engine.admission import JobQueue
from sana_service.engine.batcher import BatchKey
from sana_service.engine.bins import Size
from sana_service.engine.costs import Costs, is_guided
from sana_service.engine.flight import Flight, Shot
from sana_service.engine.gate import MemoryGate
from sana_service.engine.job import Job
from sana_service.engine.limits import Limits
from sana_service.engine.loop import DeviceLoop
from sana_service.engine.stages import StepTime

LIMITS = Limits(batch_cells={"base": 4 * 1024, "sprint": 8 * 1024}, seats={"base": 10, "sprint": 18})


@dataclass(eq=False)
class Row:
    """As much of a `DenoiseRow` as the loop looks at."""

    flight: Flight
    image: int
    key: BatchKey
    step: int = 0

    @property
    def done(self) -> bool:
        return self.step == self.flight.job.num_inference_steps

    @property
    def result(self) -> torch.Tensor:
        return torch.empty(0)


class SimulatedStages:
    """Stages that wait instead of computing.

    Args:
        step_seconds: of a batch, whatever is in it.
        image_seconds: of a decode.
    """

    device = torch.device("cpu")

    def __init__(self, step_seconds: float = 0.0, image_seconds: float = 0.0) -> None:
        self.step_seconds = step_seconds
        self.image_seconds = image_seconds
        self.steps = 0
        self.gate = MemoryGate()

    def new_stream(self, *, urgent: bool) -> None:
        return None

    def synchronize(self) -> None: ...

    def release_memory(self) -> None: ...

    def forget_batch(self) -> None: ...

    def adopt(self, rows: list[Row]) -> None: ...

    def resize(self, shot: Shot, image: torch.Tensor) -> None: ...

    def bin_of(self, job: Job) -> Size:
        return Size(1024, 1024)

    def begin(self, flight: Flight) -> list[Row]:
        key = BatchKey(flight.job.model, 32, 32, is_guided(flight.job))
        return [Row(flight, image, key) for image in range(len(flight.job.seeds))]

    def step(self, rows: list[Row]) -> list[StepTime]:
        started = time.perf_counter()
        _wait(self.step_seconds)
        self.steps += 1
        for row in rows:
            row.step += 1
        return [StepTime(rows[0].key.model, len(rows) * rows[0].key.forwards, time.perf_counter() - started)]

    def settle(self) -> list[StepTime]:
        return []

    def decode(self, shot: Shot, *, tiled: bool = False) -> torch.Tensor:
        _wait(self.image_seconds)
        return shot.latents

    def flag(self, job: Job, image: torch.Tensor) -> bool:
        return False


class PacedStages(SimulatedStages):
    """A simulated device that may be one of a real service's.

    Args:
        paces: seconds of a batch's step and of an image's decode, by model.
    """

    def __init__(self, paces: Mapping[str, tuple[float, float]]) -> None:
        super().__init__()
        self._paces = paces

    def prepare(self, _: object) -> None: ...

    def close(self) -> None: ...

    def memory_bytes(self) -> dict[str, int]:
        return {"allocated": 7}

    def step(self, rows: list[Row]) -> list[StepTime]:
        self.step_seconds = self._paces[rows[0].key.model][0]
        return super().step(rows)

    def decode(self, shot: Shot, *, tiled: bool = False) -> torch.Tensor:
        self.image_seconds = self._paces[shot.flight.job.model][1]
        return super().decode(shot, tiled=tiled)


def _wait(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


class SimulatedEngine:
    """The engine's queue and loops around simulated devices."""

    def __init__(self, devices: list[SimulatedStages], max_queue: int = 10_000, limits: Limits = LIMITS) -> None:
        costs = Costs()
        self.queue = JobQueue(max_queue, len(devices), limits.seats, costs)
        stages: list[Any] = list(devices)
        self.loops = [DeviceLoop(i, one, self.queue, costs, limits.batch_cells) for i, one in enumerate(stages)]

    def __enter__(self) -> SimulatedEngine:
        self.queue.open()
        for loop in self.loops:
            loop.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.close("the test is over")
        assert all(loop.join(30) for loop in self.loops)
