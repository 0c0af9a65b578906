"""Suites: parts that are done are not done again, parts that do not fit wait, and one report holds all of them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtests import suitefile
from loadtests.cores import shared_cores
from loadtests.scenario import ScenarioError
from loadtests.suitefile import load_suite
from tests.loadtests.support import ROOT, Done, harness

SUITES = sorted((Path(suitefile.__file__).parent / "suites").glob("*.toml"))

SUITE = """
title = "Two parts"
serve = "{python} -m tests.loadtests.queue_server --port {{port}} --seconds 0.02 --lanes 4"
start_seconds = 5

[baselines]
slow = "{python} -m tests.loadtests.queue_server --port {{port}} --seconds 0.04 --lanes 4"

[[parts]]
name = "first"

[[parts.steps]]
do = "run"
scenario = "cancellations.toml"
seconds = 5
changes = {{ duration_seconds = 1.2, warm_up_seconds = 0.2, arrivals = {{ rate = 30 }}, truth = {{ sample = 1 }} }}

[[parts.steps]]
do = "compare"
scenario = "single-stream.toml"
seconds = 16
against = "slow"
changes = {{ duration_seconds = {compared}, warm_up_seconds = 0 }}

[[parts]]
name = "second"

[[parts.steps]]
do = "run"
scenario = "cold-start.toml"
seconds = {seconds}
changes = {{ starts = 1, command = "{python} -m tests.loadtests.queue_server --port {{port}}" }}
"""


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_commands_of_a_suite_are_programs(path):
    suite = load_suite(path)
    for command in (suite.serve, *suite.baselines.values()):
        program = shlex.split(command.removeprefix("nice -n 10 "))[0]
        assert shutil.which(program, path=Path(sys.executable).parent), command


def write_suite(folder: Path, python: str = sys.executable, seconds: float = 50, compared: float = 0.4) -> Path:
    path = folder / "suite.toml"
    path.write_text(SUITE.format(python=python, seconds=seconds, compared=compared))
    return path


def run_suite(folder: Path, path: Path, *arguments: str) -> Done:
    return harness(folder, "suite", str(path), "--model", "sana", "--matrix-tflops", "1", *arguments)


def test_a_command_that_begins_with_a_variable_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="variables belong in `environment`"):
        load_suite(write_suite(tmp_path, python=f"X=1 {sys.executable}"))


def test_a_server_that_does_not_start_fails_its_part_alone(tmp_path):
    path = write_suite(tmp_path)
    path.write_text(path.read_text().replace("queue_server --port {port} --seconds 0.02", "no_such_server", 1))
    done = run_suite(tmp_path, path)
    assert done.code == 1
    assert "part first: the server ended with code 1 before /readyz was 200" in done.lines
    assert "Traceback" not in done.said
    assert [part["type"] for part in done.result()["parts"]] == ["cold_start", "failed"]


def test_a_suite_resumes_at_the_step_that_is_left(tmp_path):
    path = write_suite(tmp_path)
    begun = run_suite(tmp_path, path, "--limit-seconds", "17")
    assert begun.code in {3, 75}, begun.said
    assert begun.lines[-1] == "left for the next call: first, second"
    (cancellations,) = begun.result()["parts"]
    assert cancellations["type"] == "scenario"
    more = run_suite(tmp_path, path, "--limit-seconds", "40")
    assert more.lines[-1] == "left for the next call: second"
    parts = more.result()["parts"]
    assert [part["type"] for part in parts] == ["scenario", "comparison"]
    assert parts[0] == cancellations
    row = next(row for row in parts[1]["rows"] if row["name"] == "sprint p50")
    # The service is B: it takes half of the baseline's time.
    assert 0.35 < row["ratio"] < 0.7
    ended = run_suite(tmp_path, path)
    assert ended.code in {0, 3}, ended.said
    assert "part first: done before" in ended.lines
    document = ended.result()
    assert [part["type"] for part in document["parts"]] == ["scenario", "comparison", "cold_start"]
    assert document["parts"][:2] == parts
    assert len(document["provenance"]["steps"]) == 3
    (start,) = document["parts"][2]["starts"]
    assert 0 < start["alive"] <= start["ready"] <= start["first_picture"] < 60
    page = (ended.folder / "report.html").read_text()
    assert "first picture" in page
    assert "Two parts" in page
    # Another estimate is no other step; another comparison is.
    changed = run_suite(tmp_path, write_suite(tmp_path, seconds=51, compared=0.5), "--limit-seconds", "1")
    assert changed.lines[-1] == "left for the next call: first"
    assert changed.result()["parts"][0] == cancellations


def test_a_part_of_another_form_is_done_anew(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-first.json").write_text('{"fingerprint": "of an older version", "parts": []}')
    done = run_suite(tmp_path, write_suite(tmp_path), "--limit-seconds", "1")
    assert done.code == 75, done.said
    assert done.lines[-1] == "left for the next call: first, second"


def test_a_suite_that_is_stopped_keeps_what_it_has_and_stops_its_servers(tmp_path):
    path = write_suite(tmp_path, compared=60)
    command = [sys.executable, "-m", "loadtests", "suite", str(path), "--out", str(tmp_path / "results")]
    with subprocess.Popen(
        [*command, "--model", "sana", "--matrix-tflops", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if ": A, run 1 of 4" in line:
                break
        servers = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; what was measured so far is kept"
    assert "Traceback" not in said
    assert len(servers) >= 2
    _, alive = psutil.wait_procs(servers, timeout=5)
    assert not alive
    document = json.loads((tmp_path / "results" / "result.json").read_text())
    assert [part["name"] for part in document["parts"]] == ["cancellations"]


def test_servers_leave_the_generator_its_cores(monkeypatch):
    affinity = {0: set(range(10))}
    monkeypatch.setattr(os, "sched_getaffinity", affinity.get)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: affinity.update({pid: set(cores)}))
    said: list[str] = []
    with shared_cores(2, said.append) as servers:
        assert servers == frozenset(range(8))
        assert affinity[0] == {8, 9}
    assert affinity[0] == set(range(10))
    assert not said
    with shared_cores(3, said.append) as servers:
        assert servers is None
        assert affinity[0] == set(range(10))
    assert said == ["the generator shares the 10 cores with the servers"]
    with shared_cores(0, said.append) as servers:
        assert servers is None
    assert len(said) == 1


STARTED = """
import locust, sys
from pathlib import Path
from loadtests.coldstart import started

command = f"{sys.executable} -c 'import os; print(os.sched_getaffinity(0))'"
with started(command, log=Path(sys.argv[1]), cores={int(sys.argv[2])}) as (_, process):
    process.wait()
"""


def test_a_server_runs_on_the_cores_that_it_is_given(tmp_path):
    log, core = tmp_path / "log", max(os.sched_getaffinity(0))
    subprocess.run([sys.executable, "-c", STARTED, str(log), str(core)], cwd=ROOT, check=True)
    assert log.read_text() == f"{{{core}}}\n"
