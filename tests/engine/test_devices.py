"""Several devices behind one queue, simulated: who gets what, and what happens when one is lost.

The stages take a known time and compute nothing, so what is missing from n times the throughput is the scheduler's.
"""

from __future__ import annotations

import threading
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
import torch

from sana_service.engine.errors import NotReady
from sana_service.models.checkpoint import Models
from tests.engine.simulated import SimulatedEngine, SimulatedStages
from tests.pairs import job, local_engine
from tests.performance.devices import draw_all

SECONDS = 60


def small(model: str, **changes: Any) -> Any:
    return job(model=model, width=64, height=64, **{"num_inference_steps": 2, **changes})


def throughput(model: str, step_seconds: float, image_seconds: float, count: int) -> float:
    """Jobs a second of devices of this process that are never without one."""
    devices = [SimulatedStages(step_seconds, image_seconds) for _ in range(count)]
    requests = [small(model) for _ in range(40 * count)]
    with SimulatedEngine(devices) as engine:
        return len(requests) / draw_all(engine.queue.put, count, requests)


@pytest.mark.timing
@pytest.mark.parametrize("model", ["base", "sprint"])
def test_eight_devices_are_seven_times_as_fast_as_one(model: str):
    seconds = (0.04, 0.04) if model == "base" else (0.03, 0.04)
    alone = throughput(model, *seconds, count=1)
    assert max(throughput(model, *seconds, count=8) for _ in range(2)) >= 7 * alone


def test_few_jobs_are_spread_over_the_devices():
    devices = [SimulatedStages(0.02, 0.0) for _ in range(4)]
    with SimulatedEngine(devices) as engine:
        wait([engine.queue.put(small("sprint", num_inference_steps=5)) for _ in range(4)], SECONDS)
    assert [device.steps for device in devices] == [5, 5, 5, 5]


class Broken(SimulatedStages):
    """A device whose decoder fails for good from the n-th image on."""

    def __init__(self, after_images: int, **options: float) -> None:
        super().__init__(**options)
        self.images_before = after_images
        self.answers = True

    def decode(self, shot: Any, *, tiled: bool = False) -> torch.Tensor:
        self.images_before -= 1
        if self.images_before < 0:
            self.answers = False
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().decode(shot, tiled=tiled)


@pytest.fixture
def sticky(monkeypatch: pytest.MonkeyPatch) -> dict[int, SimulatedStages]:
    """Devices by identity, to say whether each still answers."""
    devices: dict[int, SimulatedStages] = {}
    monkeypatch.setattr(
        "sana_service.engine.loop.answers", lambda _: all(getattr(one, "answers", True) for one in devices.values())
    )
    return devices


def test_jobs_of_a_lost_device_move_to_the_others_and_none_is_lost(sticky: dict[int, SimulatedStages]):
    broken = Broken(3, step_seconds=0.002, image_seconds=0.002)
    devices = [broken, *(SimulatedStages(0.002, 0.002) for _ in range(2))]
    sticky[0] = broken
    with SimulatedEngine(devices) as engine:
        futures = [
            engine.queue.put(small(model, seeds=tuple(range(images))))
            for _ in range(40)
            for model in ("base", "sprint")
            for images in (1, 3)
        ]
        done, missing = wait(futures, SECONDS)
        assert not missing
        assert [future.exception() for future in done] == [None] * len(futures)
        assert [loop.lost for loop in engine.loops] == [True, False, False]
        assert engine.queue.accepting
        assert engine.queue.put(small("base")).result(SECONDS).pixels.shape == (1, 64, 64, 3)
        assert engine.queue.running == engine.queue.waiting == 0


def test_a_job_moves_once_and_a_queue_without_devices_closes(sticky: dict[int, SimulatedStages]):
    """The second device to fail under it may have failed because of it."""
    devices: list[SimulatedStages] = [Broken(0), Broken(0)]
    sticky |= dict(enumerate(devices))
    with SimulatedEngine(devices) as engine:
        future = engine.queue.put(small("base"))
        assert isinstance(future.exception(SECONDS), torch.AcceleratorError)
        assert [loop.lost for loop in engine.loops] == [True, True]
        with pytest.raises(NotReady):
            engine.queue.put(small("base"))


def test_a_drained_queue_waits_for_jobs_that_may_come_back(sticky: dict[int, SimulatedStages]):
    """The idle device stays until the other has finished: the job may yet be its own."""
    release = threading.Event()

    class Late(Broken):
        def decode(self, shot: Any, *, tiled: bool = False) -> torch.Tensor:
            assert release.wait(SECONDS)
            return super().decode(shot, tiled=tiled)

    late = Late(0)
    sticky[0] = late
    with SimulatedEngine([late, SimulatedStages()]) as engine:
        future = engine.queue.put(small("base"))
        engine.queue.close("draining")
        release.set()
        assert future.result(SECONDS).pixels.shape == (1, 64, 64, 3)
        assert engine.queue.wait_empty(SECONDS)


def test_two_real_devices_draw_the_same_pictures(models: Models):
    """Two loops on the CPU's models stand for two GPUs with the same weights."""
    engine = local_engine([models, models], nsfw_threshold=0.5, max_queue=8)
    engine.start()
    requests = [small(model, seeds=(seed,)) for seed in range(3) for model in ("base", "sprint")]
    together = [future.result(SECONDS).pixels for future in [engine.submit(request) for request in requests]]
    alone = [engine.submit(request).result(SECONDS).pixels for request in requests]
    assert engine.devices == 2
    assert engine.stop()
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one, other)
