"""One quick pair for all tests of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sana_service.engine.engine import Engine
from sana_service.engine.limits import Limits
from sana_service.models.checkpoint import Models
from tests.pairs import DIFFUSERS_WARNS, Pair, Stock, local_engine, write_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def models(pair: Pair) -> Models:
    return pair.load()


@pytest.fixture(scope="session")
def stock(pair: Pair) -> Stock:
    return Stock(pair)


BATCHES = Limits(batch_cells={"base": 2 * 1024, "sprint": 4 * 1024}, seats={"base": 4, "sprint": 8})
"""By default a CPU has one image in a batch."""


@pytest.fixture
def engine(models: Models) -> Iterator[Engine]:
    engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=8, limits=BATCHES)
    engine.start()
    yield engine
    assert engine.stop(timeout_seconds=30)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test here may reach diffusers' solver."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(DIFFUSERS_WARNS)
