"""Comparison A B B A: ratios that are known, drift that cancels, verdicts and exit codes."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from loadtests import compare
from loadtests.compare import blocks_of, compared, interleaved
from loadtests.errors import HarnessError
from tests.loadtests.support import harness, queue_server, write_scenario


def document(p50: float) -> dict:
    return {"endpoints": {"sprint": {"latency_seconds": {"p50": p50}}}, "failures": [], "invalid": []}


def test_drift_that_grows_evenly_cancels():
    """Each run is ten percent slower than the last; A and B are alike."""
    found = interleaved(lambda arm, number: document(1.1**number), 3, 0.05)
    (row,) = found["rows"]
    assert row["ratio"] == pytest.approx(1.0)
    assert row["verdict"] == "as good"
    assert [run["arm"] for run in found["runs"]] == list("ABBAABBAABBA")


@pytest.mark.parametrize(("ratio", "verdict"), [(1.3, "worse"), (0.7, "better"), (1.02, "as good")])
def test_a_known_ratio(ratio, verdict):
    draw = np.random.default_rng(4)
    found = interleaved(
        lambda arm, number: document((ratio if arm == "B" else 1.0) * math.exp(draw.normal(0, 0.005))), 4, 0.05
    )
    (row,) = found["rows"]
    assert row["ratio"] == pytest.approx(ratio, rel=0.02)
    assert row["low"] <= row["ratio"] <= row["high"]
    assert row["verdict"] == verdict
    assert found["worse"] == ([row["name"]] if verdict == "worse" else [])


def test_what_ends_a_comparison_early_leaves_the_complete_blocks():
    def run(arm: compare.Arm, number: int) -> dict:
        if number == 6:
            raise HarnessError("the server is gone")
        return document(2.0 if arm == "B" else 1.0)

    found = interleaved(run, 3, 0.05)
    assert found["failures"] == ["the server is gone"]
    assert (found["blocks"], len(found["runs"])) == (1, 6)
    assert found["rows"][0]["ratio"] == pytest.approx(2.0)


def test_a_comparison_without_a_run_is_none():
    def run(arm: compare.Arm, number: int) -> dict:
        raise HarnessError("no server")

    with pytest.raises(HarnessError, match="no server"):
        interleaved(run, 1, 0.05)


def test_more_images_a_second_is_better():
    assert compared([1.0, 1.0], [0.8, 0.8], 0.05, more_is_better=True).verdict == "worse"
    assert compared([1.0, 1.0], [1.2, 1.2], 0.05, more_is_better=True).verdict == "better"


def test_one_block_proves_nothing():
    found = compared([1.0], [2.0], 0.05, more_is_better=False)
    assert found.ratio == pytest.approx(2.0)
    assert (found.low, found.high, found.verdict) == (0.0, math.inf, "undecided")


def test_blocks_are_geometric_means():
    values: list[tuple[compare.Arm, float]] = [("A", 1.0), ("B", 8.0), ("B", 2.0), ("A", 4.0), ("A", 9.0)]
    first, second = blocks_of(values)
    assert first == pytest.approx([2.0])
    assert second == pytest.approx([4.0])


def test_intervals_cover_the_ratio_as_often_as_they_say():
    draw = np.random.default_rng(5)
    found = [
        compared(draw.lognormal(0, 0.1, 4).tolist(), draw.lognormal(math.log(1.5), 0.1, 4).tolist(), 0.05, False)
        for _ in range(3000)
    ]
    assert np.mean([each.low <= 1.5 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)
    assert set(compare.ORDER) == {"A", "B"}


def test_a_slower_server_gives_exit_code_4(tmp_path):
    path = write_scenario(tmp_path, seconds=0.6, rate=40)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        queue_server(tmp_path / "a", "--seconds", "0.03", "--lanes", "20", "--in-turn") as quick,
        queue_server(tmp_path / "b", "--seconds", "0.06", "--lanes", "20", "--in-turn") as slow,
    ):
        done = harness(tmp_path, "compare", path, "--a", quick.url, "--b", slow.url, "--blocks", "2")
    assert done.code in {3, 4}, done.said
    (part,) = done.result()["parts"]
    row = next(row for row in part["rows"] if row["name"] == "sprint p50")
    assert row["ratio"] == pytest.approx(2.0, rel=0.15)
    assert row["verdict"] == "worse"
    if done.code == 4:
        assert "slower" in done.said


def test_servers_are_started_by_a_command_and_from_a_commit(tmp_path):
    path = write_scenario(tmp_path, seconds=0.4, rate=40)
    serve = f"{sys.executable} -m tests.loadtests.queue_server --port {{port}} --seconds 0.02 --lanes 20"
    arms = ("--a-command", serve, "--b-commit", "HEAD", "--serve", serve)
    done = harness(tmp_path, "compare", path, *arms, "--blocks", "1")
    assert done.code in {0, 3}, done.said
    (part,) = done.result()["parts"]
    assert [run["arm"] for run in part["runs"]] == list("ABBA")
    row = next(row for row in part["rows"] if row["name"] == "sprint p50")
    assert row["ratio"] == pytest.approx(1.0, rel=0.3)
    assert part["b"] == "HEAD"
    unknown = harness(tmp_path, "compare", path, "--a-command", serve, "--b-commit", "no-such-commit", "--blocks", "1")
    assert unknown.code == 1
    assert unknown.lines == ["git worktree add: fatal: invalid reference: no-such-commit"]
