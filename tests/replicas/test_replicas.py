"""Replicas are interchangeable: `make replicas-proof` in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.replicas import scenario
from tests.replicas.farm import farm, missing_tools


def test_nothing_is_lost_made_or_billed_twice(tmp_path: Path, pair_variables: dict[str, str]) -> None:
    if missing := missing_tools():
        pytest.skip(f"not installed (apt-get install {' '.join(missing)})")
    with farm(tmp_path, pair_variables) as running:
        result = scenario.run(running, rate_per_second=2.0, phase_seconds=2.0, restart=False)
    assert result.faults == []
    summary = result.summary
    assert summary["answered"] == summary["requests"] == summary["images"] == summary["units_billed"] > 20
    assert set(summary["served_by"]) >= {"replica1", "replica2", "replica3"}
    assert all(summary["in_flight_on_it"].values())
    assert summary["repeated_by_the_client"] + summary["repeated_by_the_balancer"] > 0
    assert summary["drain"]["exit_code"] == 0
