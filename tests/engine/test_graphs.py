"""What is captured, kept and forgotten, with everything that needs a GPU exchanged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_service import runtime
from sana_service.engine import graphs, stages
from sana_service.engine.backend import Backend, UnsupportedPrecision
from sana_service.engine.gate import MemoryGate
from sana_service.engine.graphs import GraphSet
from sana_service.images import Encoder
from sana_service.models.checkpoint import Models
from sana_service.settings import load_settings
from sana_service.storage import Storage
from tests.pairs import local_engine


class Capturer:
    """Captures when it is told to."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.room = True
        self.stopped = False
        self.waiting: list[tuple[Callable[[], None], Future[None]]] = []

    def submit(self, work: Callable[[], None]) -> Future[None] | None:
        if self.stopped:
            return None
        future: Future[None] = Future()
        self.waiting.append((work, future))
        return future

    def has_room(self) -> bool:
        return self.room

    def run(self) -> None:
        while self.waiting:
            work, future = self.waiting.pop(0)
            work()
            future.set_result(None)


class Graph:
    """Replays by computing, and says so."""

    replays = 0
    error: RuntimeError | None = None

    def __init__(self, work: Callable[..., torch.Tensor], fresh: Any, fixed: Any, pool: Any) -> None:
        if Graph.error is not None:
            raise Graph.error
        self._work, self._fixed = work, fixed

    def replay(self, fresh: tuple[torch.Tensor, ...]) -> torch.Tensor:
        Graph.replays += 1
        return self._work(*fresh, *self._fixed)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "Graph", Graph)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    monkeypatch.setattr(Graph, "replays", 0)
    monkeypatch.setattr(Graph, "error", None)


def doubler(capturer: Capturer, most: int = 48) -> GraphSet:
    return GraphSet(lambda x, *fixed: 2 * x + sum(fixed), capturer, None, most)  # type: ignore[arg-type]


ONE = torch.ones(1)


def called(some: GraphSet, key: Any, fixed: tuple[torch.Tensor, ...] = ()) -> bool:
    """Whether a call was a replay."""
    before = Graph.replays
    assert some(key, (ONE,), fixed) == 2 + sum(fixed)
    return Graph.replays > before


def test_the_first_call_does_not_wait_and_a_later_one_replays():
    capturer = Capturer()
    some = doubler(capturer)
    assert not called(some, "a")
    assert not called(some, "a")
    assert len(capturer.waiting) == 1, "one capture a key"
    capturer.run()
    assert called(some, "a")


def test_the_least_recently_used_goes_and_may_come_again():
    capturer = Capturer()
    some = doubler(capturer, most=2)
    for key in "ab":
        called(some, key)
        capturer.run()
    assert called(some, "a")
    called(some, "c")
    capturer.run()
    assert called(some, "a")
    assert called(some, "c")
    assert not called(some, "b")
    capturer.run()
    assert called(some, "b")


def test_without_room_nothing_is_captured_and_nothing_that_is_there_is_lost():
    capturer = Capturer()
    some = doubler(capturer)
    called(some, "a")
    capturer.run()
    capturer.room = False
    for _ in range(3):
        assert not called(some, "b")
        capturer.run()
    assert called(some, "a")


def test_what_cannot_be_captured_runs_uncaptured_and_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    capturer = Capturer()
    some = doubler(capturer)
    monkeypatch.setattr(Graph, "error", RuntimeError("operation not permitted when stream is capturing"))
    called(some, "a")
    capturer.run()
    assert not called(some, "a")
    assert capturer.waiting == []


def test_a_capture_that_began_before_all_was_cleared_is_not_kept():
    """Its fixed tensors are those of then."""
    capturer = Capturer()
    some = doubler(capturer)
    called(some, "a", (torch.tensor(1.0),))
    some.clear()
    capturer.run()
    assert not called(some, "a", (torch.tensor(5.0),))
    capturer.run()
    assert called(some, "a", (torch.tensor(5.0),))


def test_after_the_end_calls_run_uncaptured():
    capturer = Capturer()
    some = doubler(capturer)
    capturer.stopped = True
    assert not called(some, "a")


@pytest.mark.parametrize(("given", "graph_bytes"), [({}, None), ({"SANA_GRAPH_MEMORY_GB": "1.5"}, 3 * 2**29)])
def test_the_budget_reaches_every_device(
    monkeypatch: pytest.MonkeyPatch, models: Models, tmp_path: Path, given: dict[str, str], graph_bytes: int | None
) -> None:
    seen: list[int | None] = []

    class Recorder(Backend):
        def __init__(self, models: Models, gate: MemoryGate, *, graph_bytes: int | None, **options: Any) -> None:
            seen.append(graph_bytes)
            super().__init__(models, gate, graph_bytes=graph_bytes, **options)

    monkeypatch.setattr(stages, "Backend", Recorder)
    monkeypatch.setattr("sana_service.models.load.load_models", lambda *_: models)
    settings = load_settings({"SANA_SAFETY_MODEL": "off", "SANA_MODELS": "bundled", **given})
    encoder = Encoder()
    try:
        generation = runtime.build_generation(settings, Storage(f"file://{tmp_path}", 60), encoder)
        assert generation.engine.stop(timeout_seconds=10)
    finally:
        encoder.close()
    assert seen == [graph_bytes]


def test_8_bits_need_a_device_that_has_them(models: Models) -> None:
    with pytest.raises(UnsupportedPrecision, match=r"8\.9 or newer, not cpu"):
        local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=1, precision="fp8")
