"""What the GPU bench makes of figures; the figures themselves need a GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.performance.gpu import __main__ as bench
from tests.performance.gpu.speed import busy_share, gaps

GOAL = bench.Goal("a ratio", "speed", ("alone", "ratio"), must=0.42, aim=0.33)


def test_overlapping_kernels_count_once_and_the_edges_not_at_all() -> None:
    edges = [(0, 10), (90, 100)]
    assert busy_share([*edges, (10, 50), (20, 30), (40, 70)]) == pytest.approx((70 - 10) / 80)
    assert busy_share([(0, 100)]) == 1.0


def test_idle_time_is_told_by_what_stands_around_it() -> None:
    ms = 1_000_000
    spans = [
        (0, 2 * ms, "a"),
        (ms, 9 * ms, "b"),
        (3 * ms, 4 * ms, "c"),
        (10 * ms, 11 * ms, "a"),
        (14 * ms, 15 * ms, "b"),
    ]
    assert gaps(spans) == {"a > b": 3.0, "b > a": 1.0}


@pytest.mark.parametrize(
    ("value", "verdict", "kept"), [(0.3, "aim", True), (0.4, "kept", True), (0.43, "MISSED", False)]
)
def test_a_goal_is_reached_kept_or_missed(value: float, verdict: str, kept: bool) -> None:
    line, good = GOAL.line({"speed": {"alone": {"ratio": value}}})
    assert f"| {verdict} |" in line
    assert good is kept


def test_what_was_not_measured_is_not_kept() -> None:
    assert GOAL.line({"speed": {"alone": {}}}) == ("| a ratio | not measured | 0.42 | 0.33 | |", False)


def test_a_rate_is_bounded_from_below() -> None:
    rate = bench.Goal("images", "speed", ("rate",), must=2.7, aim=3.2, at_most=False)
    assert [rate.line({"speed": {"rate": value}})[1] for value in (2.6, 2.7)] == [False, True]


@pytest.fixture
def parts_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that the bench began; each succeeds and writes a figure."""
    begun: list[str] = []

    def part(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        begun.append(command[2].rpartition(".")[2])
        Path(command[3]).write_text(json.dumps({"commit": "abc", "done": True}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench, "commit", lambda _: "abc")
    monkeypatch.setattr(subprocess, "run", part)
    return begun


def test_a_call_begins_what_fits_and_the_next_ones_what_is_left(
    parts_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--out", str(tmp_path), "--limit-seconds", "350"]
    assert bench.main(call) == bench.EXIT_LEFT
    assert parts_run == ["exactness", "precision", "bundled"]
    assert "left for the next call: speed, serving" in capsys.readouterr().out
    # One that takes longer than the limit has a call of its own.
    assert bench.main(call) == bench.EXIT_LEFT
    # Nothing was exact, and no goal is kept by figures that are not there.
    assert bench.main(call) == bench.EXIT_MISSED
    assert parts_run[3:] == ["speed", "serving"]
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == set(bench.PARTS)


def test_another_commit_is_measured_anew(parts_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.main(["exactness", "--out", str(tmp_path)])
    bench.main(["exactness", "--out", str(tmp_path)])
    monkeypatch.setattr(bench, "commit", lambda _: "def")
    bench.main(["exactness", "--out", str(tmp_path)])
    assert parts_run == ["exactness", "exactness"]


def test_a_part_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["memory"])
    assert "no such part: memory" in capsys.readouterr().err


def test_exact_is_what_is_within_bounds_and_has_equal_bits() -> None:
    good = {"text": {"good": True}, "text: graph, equal bits": True, "device": "H100"}
    assert bench.exact({"exactness": good})
    assert not bench.exact({"exactness": good | {"decoder": {"good": False}}})
    assert not bench.exact({"exactness": good | {"text: graph, equal bits": False}})
    assert not bench.exact({})
