"""The life of a process: when it is ready, and how a start ends that went wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sana_service import runtime as module
from sana_service.callers import CallerLimit, caller
from sana_service.contract.errors import Overloaded, Unavailable
from sana_service.contract.schemas import ImageFile, SanaSprintOutput, SprintInput
from sana_service.generation import Extras
from sana_service.jobs.record import StoreError
from sana_service.metrics import OUTCOMES, REQUESTS
from sana_service.runtime import Runtime
from sana_service.settings import load_settings
from sana_service.storage import Storage

FILE = ImageFile(
    url="http://a/files/0.png", content_type="image/png", file_name="0.png", file_size=1, width=1, height=1
)
OUTPUT = SanaSprintOutput(images=[FILE], seed=1, has_nsfw_concepts=[False], prompt="a", timings={})
REQUEST = SprintInput(prompt="a")


class Ended(BaseException):
    """In place of the process's end."""


class Drawing:
    """Stands for a generation: draws nothing, at the pace and with the errors that a test wants."""

    def __init__(self, devices: int = 1, fails: dict[str, Exception] | None = None) -> None:
        self.engine = SimpleNamespace(devices=devices, healthy=True, predicted_wait=lambda _: 0.0)
        self.model_names = {"base": "a/base", "sprint": "a/sprint"}
        self.extras: list[Extras] = []
        self.drawn: list[str] = []
        self.ready_at_each: list[bool] = []
        self.fails = fails or {}
        self.began, self.may_end = asyncio.Event(), asyncio.Event()
        self.runtime: Runtime | None = None

    async def run(self, model: str, request: Any, base_url: str, extras: Any = None) -> SanaSprintOutput:
        assert self.runtime is not None
        self.ready_at_each.append(self.runtime.ready)
        assert request.num_images >= 1
        if model in self.fails:
            raise self.fails[model]
        self.drawn.append(model)
        if isinstance(extras, Extras):
            self.extras.append(extras)
            self.began.set()
            await self.may_end.wait()
            if extras.settle is not None:
                await extras.settle(OUTPUT)
        return OUTPUT


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


def counts() -> dict[str, float]:
    """Sprint requests so far, by how they ended."""
    return {one: REQUESTS.labels("sprint", one)._value.get() for one in OUTCOMES}


def since(before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in counts().items() if value != before[name]}


@pytest.fixture
def drawing(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Drawing:
    """Ready, and draws when it is let."""
    drawing = Drawing()
    load(runtime, drawing, monkeypatch)
    drawing.drawn.clear()
    return drawing


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_repetition_has_a_place_a_count_and_the_deadline_of_any_request(runtime: Runtime, drawing: Drawing) -> None:
    """Of one caller who may have two requests at a time, three come with one key."""
    runtime._callers = CallerLimit(2)
    before = counts()

    async def main() -> list[Any]:
        caller.set(b"somebody")
        started = time.monotonic()
        two = [asyncio.create_task(runtime.answer("k", "sprint", REQUEST, "http://a", Extras())) for _ in range(2)]
        await drawing.began.wait()
        await until(lambda: runtime._in_flight == 2)
        with pytest.raises(Overloaded):
            await runtime.answer("k", "sprint", REQUEST, "http://a", Extras())
        assert not runtime._idle.is_set(), "what waits was accepted"
        drawing.may_end.set()
        answers = await asyncio.gather(*two)
        [extras] = drawing.extras
        assert extras.deadline is not None
        assert started < extras.deadline - runtime._settings.request_timeout_seconds < time.monotonic()
        return answers

    answers = asyncio.run(main())
    assert drawing.drawn == ["sprint"]
    assert sorted(headers.get("idempotent-replayed", "first") for _, headers in answers) == ["first", "true"]
    assert since(before) == {"completed": 1, "replayed": 1, "refused": 1}
    assert runtime._in_flight == 0


def test_a_lifetime_is_registered_before_the_answer_is_kept_and_bounds_it(
    runtime: Runtime, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Any] = []
    store: Any = runtime._once._store

    def keep(name: str, fingerprint: str, owner: str, answer: Any, seconds: float) -> bool:
        registered.append(("keep", seconds))
        return True

    async def delete_later(names: list[str], seconds: float) -> None:
        registered.append((names, seconds))

    monkeypatch.setattr(store, "keep", keep)
    monkeypatch.setattr(runtime.jobs, "delete_later", delete_later)
    drawing.may_end.set()
    asyncio.run(runtime.answer("k", "sprint", REQUEST, "http://a", Extras(lifetime_seconds=5.0)))
    assert registered == [(["0.png"], 5.0), ("keep", 5.0)]


def test_a_lifetime_that_cannot_be_registered_is_503(
    runtime: Runtime, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StoreError("redis://nowhere: timed out")

    monkeypatch.setattr(runtime.jobs, "delete_later", fail)
    drawing.may_end.set()
    before = counts()
    with pytest.raises(Unavailable, match="lifetimes"):
        asyncio.run(runtime.generate("sprint", REQUEST, "http://a", Extras(lifetime_seconds=5.0)))
    assert since(before) == {"failed": 1}


def test_a_store_of_keys_that_is_down_is_counted(
    runtime: Runtime, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("redis://nowhere: timed out")

    monkeypatch.setattr(runtime._once._store, "claim", fail)
    before = counts()
    with pytest.raises(Unavailable):
        asyncio.run(runtime.answer("k", "sprint", REQUEST, "http://a", Extras()))
    assert since(before) == {"failed": 1}
