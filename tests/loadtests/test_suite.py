"""Suites: parts that are done are not done again, parts that do not fit wait, and one report holds all of them."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from loadtests import suitefile
from loadtests.scenario import ScenarioError
from loadtests.suitefile import load_suite
from tests.loadtests.support import harness

SUITES = sorted((Path(suitefile.__file__).parent / "suites").glob("*.toml"))

SUITE = """
title = "Two parts"
serve = "{python} -m tests.loadtests.queue_server --port {{port}} --seconds 0.02 --lanes 4"

[baselines]
slow = "{python} -m tests.loadtests.queue_server --port {{port}} --seconds 0.04 --lanes 4"

[[parts]]
name = "first"
seconds = 20

[[parts.steps]]
do = "run"
scenario = "cancellations.toml"
changes = {{ duration_seconds = 1.2, warm_up_seconds = 0.2, arrivals = {{ rate = 30 }}, truth = {{ sample = 1 }} }}

[[parts.steps]]
do = "compare"
scenario = "single-stream.toml"
against = "slow"
changes = {{ duration_seconds = 0.4, warm_up_seconds = 0 }}

[[parts]]
name = "second"
seconds = {seconds}

[[parts.steps]]
do = "run"
scenario = "cold-start.toml"
changes = {{ starts = 1, command = "{python} -m tests.loadtests.queue_server --port {{port}}" }}
"""


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_commands_of_a_suite_are_programs(path):
    suite = load_suite(path)
    for command in (suite.serve, *suite.baselines.values()):
        program = shlex.split(command.removeprefix("nice -n 10 "))[0]
        assert shutil.which(program, path=Path(sys.executable).parent), command
    # A part has to end within a machine's call of ten minutes, and its server has to start.
    assert all(part.seconds <= 540 for part in suite.parts)


def test_a_command_that_begins_with_a_variable_is_refused(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(python=f"X=1 {sys.executable}", seconds=50))
    with pytest.raises(ScenarioError, match="variables belong in `environment`"):
        load_suite(path)


def test_a_server_that_does_not_start_fails_its_part_alone(tmp_path):
    path = tmp_path / "suite.toml"
    text = SUITE.format(python=sys.executable, seconds=50)
    path.write_text(text.replace("queue_server --port {port} --seconds 0.02", "no_such_server", 1))
    done = harness(tmp_path, "suite", str(path), "--model", "sana", "--matrix-tflops", "1")
    assert done.code == 1
    assert "part first: the server ended with code 1 before /readyz was 200" in done.lines
    assert "Traceback" not in done.said
    assert [part["type"] for part in done.result()["parts"]] == ["cold_start", "failed"]


def test_a_suite_resumes(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(python=sys.executable, seconds=50))
    begun = harness(tmp_path, "suite", str(path), "--limit-seconds", "40", "--model", "sana", "--matrix-tflops", "1")
    assert begun.code in {3, 75}, begun.said
    assert begun.lines[-1] == "left for the next call: second"
    parts = begun.result()["parts"]
    assert [part["type"] for part in parts] == ["scenario", "comparison"]
    row = next(row for row in parts[1]["rows"] if row["name"] == "sprint p50")
    # The service is B: it takes half of the baseline's time.
    assert 0.35 < row["ratio"] < 0.7
    ended = harness(tmp_path, "suite", str(path), "--limit-seconds", "60", "--model", "sana", "--matrix-tflops", "1")
    assert ended.code in {0, 3}, ended.said
    assert "part first: done before" in ended.lines
    document = ended.result()
    assert [part["type"] for part in document["parts"]] == ["scenario", "comparison", "cold_start"]
    assert document["parts"][:2] == parts
    (start,) = document["parts"][2]["starts"]
    assert 0 < start["alive"] <= start["ready"] <= start["first_picture"] < 60
    page = (ended.folder / "report.html").read_text()
    assert "first picture" in page
    assert "Two parts" in page
    path.write_text(SUITE.format(python=sys.executable, seconds=51))
    again = harness(tmp_path, "suite", str(path), "--limit-seconds", "1")
    assert "part first: done before" in again.lines
    assert again.lines[-1] == "left for the next call: second"
