"""Fixtures that several test modules share: a quick random pair, and servers on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import settings

from tests import services

# The same examples every time, and at any pace: `make fuzz` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None)
settings.load_profile("searching" if "SANA_FUZZ_EXAMPLES" in os.environ else "repeatable")

# One core stays free for the event loop and the test itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU the kernels run in Triton's interpreter. It reads this when it is imported, and libraries import it.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


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
def bundled_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[services.Server, dict[str, httpx.Response]]]:
    """The service as a laptop has it, with the bundled model; and what it answered while that was loading."""
    with services.process(tmp_path_factory.mktemp("bundled"), {"SANA_MODELS": "bundled"}) as running:
        with running.client() as http:
            early = {"/livez": running.first_answer("/livez")}
            early["/readyz"] = http.get("/readyz")
            early["/sprint"] = http.post("/sprint", json={"prompt": "a red circle"})
            early["bad input"] = http.post("/sprint", json={})
        running.wait_until_ready()
        yield running, early


@pytest.fixture(scope="session")
def bundled_server(bundled_start: tuple[services.Server, dict[str, httpx.Response]]) -> services.Server:
    """The service with the bundled model, ready."""
    return bundled_start[0]


LONGEST = (
    *("test_schemathesis.py", "test_replicas.py", "test_queue_survival.py", "test_queues.py", "test_chaos.py"),
    *("test_bundled.py", "test_batching.py", "test_runs.py", "test_page.py", "test_start.py", "test_mutations.py"),
    *("test_stock.py", "test_thousand_jobs.py", "test_bento.py", "test_suite.py", "test_cli.py", "test_readme.py"),
)
"""Modules that take half a minute or more alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, so that no worker is left alone with one of them at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
