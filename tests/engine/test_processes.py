"""Devices with a process each: the same pictures, the same promises, and what happens when a process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest

from sana_service.engine.engine import Engine
from sana_service.engine.errors import DeadlineExceeded, JobCancelled, NotReady
from sana_service.engine.observer import Progress
from sana_service.engine.processes.device import DeviceError, DeviceProcess, DeviceSpec, start_devices
from sana_service.engine.processes.loop import RemoteError
from sana_service.engine.processes.pixels import PixelMemory
from tests.engine.devices import PairDevice, SimulatedDevice, SlowDevice
from tests.pairs import Pair, Recorder, job, local_engine

SECONDS = 60


def small(model: str = "sprint", **changes: Any) -> Any:
    return job(**{"model": model, "width": 64, "height": 64, "num_inference_steps": 2, **changes})


class Served:
    """An engine before processes."""

    def __init__(self, specs: tuple[DeviceSpec, ...]) -> None:
        self.processes = start_devices({f"device:{i}": spec for i, spec in enumerate(specs)})
        self.engine = Engine(self.processes, max_queue=100)
        self.engine.start()

    @property
    def held_blocks(self) -> int:
        return sum(process.memory.held_blocks for process in self.processes)


@contextmanager
def served(*specs: DeviceSpec) -> Iterator[Served]:
    one = Served(specs)
    try:
        yield one
    finally:
        one.engine.stop(SECONDS)
        assert not any(psutil.pid_exists(process.pid) for process in one.processes)


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true in a while."""
    give_up_at = time.monotonic() + SECONDS
    while not (result := true()) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    return result


def test_pictures_are_those_of_this_process(pair: Pair):
    requests: list[tuple[str, dict[str, Any]]] = [
        ("base", {"seeds": (3, 4), "width": 96, "height": 64}),
        ("sprint", {"seeds": (5,)}),
        ("base", {"seeds": (2**64 - 1,), "guidance_scale": 1.0}),
    ]
    local = local_engine(pair.load(), safety=None, nsfw_threshold=0.5, max_queue=8)
    local.start()
    device = PairDevice(pair.base, pair.sprint)
    with served(device, device) as remote:
        for model, changes in requests:
            watchers = Recorder(1), Recorder(1)
            ours, theirs = (
                engine.submit(small(model, observer=watcher, **{"num_inference_steps": 3, **changes})).result(SECONDS)
                for engine, watcher in zip((local, remote.engine), watchers, strict=True)
            )
            np.testing.assert_array_equal(theirs.pixels, ours.pixels)
            assert theirs.flagged == ours.flagged
            assert theirs.timings.keys() == ours.timings.keys()
            assert theirs.batch_images == ours.batch_images
            assert watchers[1].told == watchers[0].told
            assert [(one.image, one.index) for one in watchers[1].shown] == [
                (one.image, one.index) for one in watchers[0].shown
            ]
            for first, second in zip(watchers[0].shown, watchers[1].shown, strict=True):
                np.testing.assert_array_equal(first.pixels, second.pixels)
        assert remote.processes[0].wait_ready().names == {"base": "a base", "sprint": "a sprint"}
        assert remote.engine.running == remote.engine.queued == 0
    local.stop()


def test_many_jobs_are_spread_and_their_memory_comes_back():
    with served(SimulatedDevice(0.005), SimulatedDevice(0.005)) as remote:
        images = [1 + number % 4 for number in range(80)]
        futures = [
            remote.engine.submit(small(seeds=tuple(range(number, number + count)), width=64 + number, height=80))
            for number, count in enumerate(images)
        ]
        for number, future in enumerate(futures):
            artifact = future.result(SECONDS)
            assert artifact.pixels.shape == (images[number], 80, 64 + number, 3)
            for image, pixels in enumerate(artifact.pixels):
                assert np.all(pixels == number + image)
        assert remote.engine.predicted_wait("sprint") == 0
        held = artifact.pixels[-1, :10]
        del artifact, futures, future, pixels
        assert eventually(lambda: remote.held_blocks == 1)
        assert np.all(held == 82)
        del held
        assert eventually(lambda: remote.held_blocks == 0)
        assert eventually(lambda: remote.engine.memory_bytes().get("device:1") == {"allocated": 7})
        assert remote.engine.shortages() == {"text": 0, "denoise": 0, "decode": 0, "finish": 0}


def test_a_running_job_is_cancelled_or_expires_within_a_step():
    with served(SimulatedDevice(0.02)) as remote:
        doomed, late = small(num_inference_steps=5000), small(num_inference_steps=5000)
        future = remote.engine.submit(doomed)
        assert eventually(lambda: remote.engine.running == 1)
        doomed.cancel()
        assert isinstance(future.exception(SECONDS), JobCancelled)
        late = small(num_inference_steps=5000, deadline=time.monotonic() + 0.5)
        future = remote.engine.submit(late)
        assert isinstance(future.exception(SECONDS), DeadlineExceeded)
        assert eventually(lambda: remote.engine.running == 0)
        assert remote.engine.submit(small()).result(SECONDS).flagged == (False,)


def test_a_job_that_fails_says_where():
    with served(SimulatedDevice()) as remote:
        error = remote.engine.submit(small(prompt="break")).exception(SECONDS)
        assert str(error) == "ValueError: a picture that cannot be drawn"
        assert isinstance(error, RemoteError)
        assert "in decode\n" in str(error.__cause__)
        assert remote.engine.submit(small()).result(SECONDS).flagged == (False,)
        assert remote.engine.healthy


def test_jobs_of_a_killed_process_begin_anew_on_another():
    with served(SimulatedDevice(0.01, 0.01), SimulatedDevice(0.01, 0.01)) as remote:
        futures = [remote.engine.submit(small(seeds=(number,))) for number in range(60)]
        futures[3].result(SECONDS)
        os.kill(remote.processes[0].pid, signal.SIGKILL)
        _, missing = wait(futures, SECONDS)
        assert not missing
        assert [int(future.result().pixels[0, 0, 0, 0]) for future in futures] == list(range(60))
        assert remote.engine.devices_lost == 1
        assert remote.engine.healthy
        assert remote.engine.accepting
        os.kill(remote.processes[1].pid, signal.SIGKILL)
        assert eventually(lambda: not remote.engine.healthy)
        with pytest.raises(NotReady):
            remote.engine.submit(small())


def test_a_job_ends_when_its_last_device_dies_under_it():
    with served(SimulatedDevice(0.02)) as remote:
        running = remote.engine.submit(small(num_inference_steps=5000))
        assert eventually(lambda: remote.engine.running == 1)
        os.kill(remote.processes[0].pid, signal.SIGKILL)
        assert isinstance(running.exception(SECONDS), NotReady)
        assert remote.engine.running == 0


def test_a_lost_device_gives_its_jobs_to_another_and_each_moves_once():
    with served(SimulatedDevice(0.01, fails=3), SimulatedDevice(0.01, fails=40)) as remote:
        futures = [remote.engine.submit(small(seeds=(number,))) for number in range(20)]
        _, missing = wait(futures, SECONDS)
        assert not missing
        assert [future.exception() for future in futures] == [None] * 20
        assert remote.engine.devices_lost == 1
        futures = [remote.engine.submit(small()) for _ in range(40)]
        wait(futures, SECONDS)
        errors = [error for future in futures if (error := future.exception())]
        assert any(str(error) == "AcceleratorError: CUDA error: gone" for error in errors)
        assert not remote.engine.healthy


def test_an_observer_that_raises_fails_its_own_job_alone():
    class Broken(Recorder):
        def progress(self, progress: Progress) -> None:
            raise RuntimeError("an observer must not raise")

    with served(SimulatedDevice(0.01)) as remote:
        broken = remote.engine.submit(small(observer=Broken(), num_inference_steps=5000))
        others = [remote.engine.submit(small(seeds=(number,))) for number in range(20)]
        assert [int(other.result(SECONDS).pixels[0, 0, 0, 0]) for other in others] == list(range(20))
        assert str(broken.exception(SECONDS)) == "an observer must not raise"
        assert remote.engine.running == remote.engine.devices_lost == 0


def test_what_cannot_be_followed_loses_the_device_and_no_job(monkeypatch: pytest.MonkeyPatch):
    with served(SimulatedDevice(0.01), SimulatedDevice(0.01)) as remote:
        first = remote.engine._loops[0]
        monkeypatch.setattr(first, "_hear", lambda _: 1 / 0)
        others = [remote.engine.submit(small(seeds=(number,))) for number in range(20)]
        assert [int(other.result(SECONDS).pixels[0, 0, 0, 0]) for other in others] == list(range(20))
        assert eventually(lambda: first.lost)
        assert remote.engine.devices_lost == 1


def test_a_device_that_cannot_be_built_is_told_and_the_others_end():
    before = psutil.Process().children()
    with pytest.raises(DeviceError, match=r"^no such weights$"):
        start_devices({"device:0": SlowDevice(), "device:1": SimulatedDevice(refuses="no such\nweights")})
    assert psutil.Process().children() == before


def test_a_process_that_dies_while_it_loads_is_told():
    process = DeviceProcess("device:0", SlowDevice())
    process.kill()
    with pytest.raises(DeviceError, match=r"^the process of device:0 ended while it loaded, signal 9$"):
        process.wait_ready()


def test_a_device_does_not_outlive_the_service():
    program = (
        "import time\n"
        "from sana_service.engine.processes.device import DeviceProcess\n"
        "from tests.engine.devices import SimulatedDevice\n"
        "process = DeviceProcess('device:0', SimulatedDevice())\n"
        "process.wait_ready()\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        assert psutil.pid_exists(pid)
        service.kill()
    assert eventually(lambda: not psutil.pid_exists(pid))


def test_blocks_are_used_again_once_both_let_go():
    memory = PixelMemory(2**20)
    first, images = memory.take((1, 10, 10, 3))
    memory.cancellation(first).set()
    memory.let_go(first)
    assert memory.held_blocks == 1
    second, others = memory.take((1, 10, 10, 3))
    assert second != first
    images[:], others[:] = 1, 2
    view = images[0, 3:5]
    del images
    assert memory.held_blocks == 2
    assert np.all(view == 1)
    del view
    assert memory.held_blocks == 1
    third, _ = memory.take((2, 10, 10, 3))
    assert third == first
    assert not memory.cancellation(third).is_set()


def test_memory_that_is_full_says_so():
    memory = PixelMemory(2**16)
    _, images = memory.take((1, 100, 100, 3))
    with pytest.raises(MemoryError):
        memory.take((1, 100, 100, 3))
    assert images.shape == (1, 100, 100, 3)
