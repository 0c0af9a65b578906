"""Fixtures that several test modules share: a quick random pair, and servers on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services

# One core stays free for the event loop and the test itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def pair_variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings for a server on a one-layer random pair, in the hub's layout, in local folders."""
    from sana_service.models.bundled.random_pair import build_random_pair

    base, sprint = build_random_pair(tmp_path_factory.mktemp("pair"))
    return {
        "SANA_MODELS": "hub",
        "SANA_BASE_MODEL": str(base),
        "SANA_SPRINT_MODEL": str(sprint),
        "SANA_SAFETY_MODEL": "opennsfw",
    }


@pytest.fixture(scope="session")
def quick_server(tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str]) -> Iterator[services.Server]:
    """A server whose pictures take a fraction of a second."""
    with services.server(tmp_path_factory.mktemp("quick"), pair_variables) as running:
        yield running


@pytest.fixture(scope="session")
def bundled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Server]:
    """The service as a laptop has it: the bundled model."""
    with services.server(tmp_path_factory.mktemp("bundled"), {"SANA_MODELS": "bundled"}) as running:
        yield running


@pytest.fixture(scope="session")
def repository() -> Path:
    return services.REPOSITORY
