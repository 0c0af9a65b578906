"""Scenario files: those in the box are right, and a wrong one is told by file, field and bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests import scenario, suitefile
from loadtests.schedule import Source

BOX = Path(__file__).parents[2] / "loadtests"
RIGHT = """
name = "a"
kind = "server"
duration_seconds = 20
[arrivals]
process = "poisson"
rate = 5
[[requests]]
endpoint = "sprint"
"""


@pytest.mark.parametrize("path", sorted((BOX / "scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_each_scenario_of_the_box_is_right(path):
    loaded = scenario.load(path)
    assert loaded.name == path.stem
    assert loaded.description


@pytest.mark.parametrize("path", sorted((BOX / "suites").glob("*.toml")), ids=lambda path: path.stem)
def test_each_suite_of_the_box_is_right_and_its_steps_are_short(path):
    loaded = suitefile.load_suite(path)
    # What a machine that is lent for ten minutes holds.
    assert loaded.start_seconds + max(step.seconds for part in loaded.parts for step in part.steps) <= 540


FAULTS = {
    "rate = 5|rate = -1": "{path}: arrivals.rate: Input should be greater than 0, got -1",
    "rate = 5|rate = inf": "{path}: arrivals.rate: Input should be a finite number, got inf",
    "rate = 5|rate = 1e9": "{path}: arrivals.rate: Input should be less than or equal to 100000, got 1000000000.0",
    "rate = 5|": "{path}: arrivals.rate: Field required",
    'process = "poisson"|process = "sometimes"': "{path}: arrivals.process: must be one of 'poisson', 'gamma', "
    "'constant', 'step', 'spike', 'ramp', 'trace', got 'sometimes'",
    'kind = "server"|': "{path}: kind: is missing",
    'endpoint = "sprint"|endpoint = "paint"': "{path}: requests[0].endpoint: Input should be 'generate' or 'sprint', "
    "got 'paint'",
    'endpoint = "sprint"|endpoint = "sprint"\nimage_size = "huge"': "{path}: requests[0].image_size: 'huge' is neither "
    "WIDTHxHEIGHT nor one of square_hd, ",
    'endpoint = "sprint"|endpoint = "sprint"\nimage_sise = "square"': "{path}: requests[0].image_sise: "
    "Extra inputs are not permitted, got 'square'",
    "duration_seconds = 20|duration_seconds = 20\nwarm_up_seconds = 20": "{path}: warm_up_seconds must be below "
    "duration_seconds, 20",
    "duration_seconds = 20|duration_seconds = '": "{path}: is no TOML, ",
}


@pytest.mark.parametrize("change", FAULTS)
def test_a_fault_names_file_field_and_bound(change, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(RIGHT.replace(*change.split("|")))
    with pytest.raises(scenario.ScenarioError) as caught:
        scenario.load(path)
    assert str(caught.value).startswith(FAULTS[change].format(path=path))
    assert "\n" not in str(caught.value)


def test_each_fault_has_a_line(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(RIGHT.replace("rate = 5", "rate = 0").replace("= 20", "= 0"))
    with pytest.raises(scenario.ScenarioError) as caught:
        scenario.load(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(scenario.ScenarioError, match="there is no such file"):
        scenario.load(tmp_path / "none.toml")


def test_a_suite_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(scenario.ScenarioError, match="can't decode byte"):
        suitefile.load_suite(path)


def test_a_trace_lies_beside_its_scenario(tmp_path):
    (tmp_path / "trace.csv").write_text("seconds,path\n3.5,/sprint\n3.0\n\n9\n")
    path = tmp_path / "trace.toml"
    path.write_text(RIGHT.replace('"poisson"\nrate = 5', '"trace"\nfile = "trace.csv"'))
    loaded = scenario.load(path)
    assert isinstance(loaded, scenario.Server)
    np.testing.assert_allclose(Source(loaded, 0, "").times(), [0, 0.5, 6])
    (tmp_path / "trace.csv").write_text("1\ntwo\n")
    # Before anything is sent, and not first in the middle of a run.
    with pytest.raises(scenario.ScenarioError, match="line 2 is no number of seconds: 'two'"):
        scenario.load(path)
    (tmp_path / "trace.csv").write_bytes(b"1\n\xff\n")
    with pytest.raises(scenario.ScenarioError, match=r"trace.csv: the trace cannot be read"):
        scenario.load(path)
    (tmp_path / "trace.csv").unlink()
    with pytest.raises(scenario.ScenarioError, match=r"trace.csv: the trace cannot be read"):
        scenario.load(path)


def test_requests_depend_on_seed_repeat_and_index_alone(tmp_path):
    path = tmp_path / "right.toml"
    mix = '[[requests]]\nendpoint = "generate"\nweight = 3\nnum_images = 2\ncancel_share = 0.5'
    path.write_text(RIGHT + mix)
    loaded = scenario.load(path)
    assert not isinstance(loaded, scenario.ColdStart)
    source = Source(loaded, 0, "m")
    planned = [source.planned(index) for index in range(2000)]
    assert planned == [Source(loaded, 0, "m").planned(index) for index in range(2000)]
    assert len({each.body["prompt"] for each in planned}) == 2000
    assert len({each.body["seed"] for each in planned}) == 2000
    generated = [each for each in planned if each.endpoint == "generate"]
    assert len(generated) == pytest.approx(1500, rel=0.06)
    assert sum(each.cancel_after_seconds is not None for each in generated) == pytest.approx(750, rel=0.12)
    assert {(each.endpoint, each.body["num_inference_steps"], each.body["num_images"]) for each in planned} == {
        ("generate", 18, 2),
        ("sprint", 2, 1),
    }
    assert source.planned(7) != Source(loaded, 1, "m").planned(7)
    assert source.planned(7).body["prompt"] != Source(loaded, 0, "n").planned(7).body["prompt"]


def test_a_closed_loop_has_each_class_in_its_share_of_any_stretch(tmp_path):
    path = tmp_path / "closed.toml"
    classes = [f'[[requests]]\nendpoint = "sprint"\nweight = {weight}\nnum_images = {weight}' for weight in (1, 2, 4)]
    path.write_text('name = "closed"\nkind = "single_stream"\nduration_seconds = 1\n' + "\n".join(classes))
    loaded = scenario.load(path)
    assert isinstance(loaded, scenario.SingleStream)
    for repeat in range(20):
        source = Source(loaded, repeat, "m")
        found = [source.planned(index).body["num_images"] for index in range(140)]
        for start in range(0, 140, 14):
            stretch = found[start : start + 14]
            assert [stretch.count(weight) for weight in (1, 2, 4)] == pytest.approx([2, 4, 8], abs=1)
    assert found != [Source(loaded, 0, "m").planned(index).body["num_images"] for index in range(140)]


def test_prompts_are_reused_as_often_as_is_asked(tmp_path):
    path = tmp_path / "right.toml"
    path.write_text(RIGHT + "prompt_reuse = 0.5")
    loaded = scenario.load(path)
    assert not isinstance(loaded, scenario.ColdStart)
    prompts = [Source(loaded, 0, "m").planned(index).body["prompt"] for index in range(2000)]
    repeated = [prompt for prompt in prompts if prompts.count(prompt) > 1]
    assert len(repeated) == pytest.approx(1000, rel=0.1)
