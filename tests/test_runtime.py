"""The life of a process: when it is ready, and how a start ends that went wrong."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sana_service import runtime as module
from sana_service.contract.errors import Unavailable
from sana_service.contract.schemas import SprintInput
from sana_service.runtime import Runtime
from sana_service.settings import load_settings
from sana_service.storage import Storage


class Ended(BaseException):
    """In place of the process's end."""


class Drawing:
    """Stands for a generation: draws nothing, at the pace and with the errors that a test wants."""

    def __init__(self, devices: int = 1, fails: dict[str, Exception] | None = None) -> None:
        self.engine = SimpleNamespace(devices=devices, healthy=True, predicted_wait=lambda _: 0.0)
        self.drawn: list[str] = []
        self.ready_at_each: list[bool] = []
        self.fails = fails or {}
        self.runtime: Runtime | None = None

    async def run(self, model: str, request: Any, base_url: str, extras: Any = None) -> None:
        assert self.runtime is not None
        self.ready_at_each.append(self.runtime.ready)
        assert request.num_images >= 1
        if model in self.fails:
            raise self.fails[model]
        self.drawn.append(model)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(module, "REGISTRY", CollectorRegistry())

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("os._exit", end)
    # what is alive now is not frozen for the rest of the tests
    monkeypatch.setattr(module, "gc", SimpleNamespace(collect=lambda: 0, freeze=lambda: None))
    settings = load_settings(
        {"SANA_STORAGE_URL": (tmp_path / "files").as_uri(), "SANA_JOBS_URL": f"sqlite://{tmp_path}/jobs.db"}
    )
    return Runtime(settings, Storage(settings.storage_url, 60))


def load(runtime: Runtime, drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing.runtime = runtime
    monkeypatch.setattr(module, "build_generation", lambda *_: drawing)
    asyncio.run(runtime._load())


@pytest.mark.parametrize("devices", [1, 3])
def test_ready_comes_after_a_picture_on_each_endpoint_and_device(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    assert not runtime.ready
    assert runtime.alive
    drawing = Drawing(devices)
    load(runtime, drawing, monkeypatch)
    assert drawing.drawn == ["base"] * devices + ["sprint"] * devices
    assert drawing.ready_at_each == [False] * 2 * devices
    assert runtime.ready


@pytest.mark.parametrize("model", ["base", "sprint"])
def test_a_warm_up_that_draws_nothing_ends_the_process_with_one_line(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    drawing = Drawing(fails={model: ValueError("the latents are\nnot finite numbers")})
    monkeypatch.setattr(logging.getLogger("sana"), "propagate", True)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    with caplog.at_level(logging.INFO, "sana"), pytest.raises(Ended) as ended:
        load(runtime, drawing, monkeypatch)
    assert ended.value.args == (1,)
    assert not runtime.ready
    assert [record.getMessage() for record in caplog.records] == ["start failed: the latents are not finite numbers"]


def test_what_comes_too_early_is_told_to_come_again(runtime: Runtime) -> None:
    with pytest.raises(Unavailable) as refused:
        asyncio.run(runtime.generate("sprint", SprintInput(prompt="a"), "http://a"))
    assert int(refused.value.headers["retry-after"]) >= 1


def test_a_lost_device_is_not_alive_and_a_draining_process_is(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Drawing()
    load(runtime, drawing, monkeypatch)
    runtime._draining = True
    assert (runtime.ready, runtime.alive) == (False, True)
    drawing.engine.healthy = False
    assert not runtime.alive
