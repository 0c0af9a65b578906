"""What makes a run failed, invalid or doubtful; what is seen of the machine; and what never gets into a report."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loadtests import charts, report, scenario, trial, truth
from loadtests.contract import Expected
from loadtests.monitor import Gpus, Sample, family_of, listening_process, resident_bytes
from loadtests.records import UNANSWERED
from tests.loadtests.queue_server import picture
from tests.loadtests.test_measure import record

COMMON = {"name": "a", "duration_seconds": 100, "requests": [{"endpoint": "sprint"}]}
ARRIVALS = {"process": "poisson", "rate": 1}


def load(kind: str = "server", **changes) -> scenario.Load:
    document = {**COMMON, "kind": kind, "arrivals": ARRIVALS, **changes}
    loaded = scenario.parse(document, "here")
    assert not isinstance(loaded, scenario.ColdStart)
    return loaded


def judged(wanted: scenario.Load, records, samples=(), stop_reason=None, lateness=()):
    data = SimpleNamespace(
        records=list(records),
        samples=list(samples),
        stop_reason=stop_reason,
        lateness=list(lateness),
        mark="m",
        started_at=0,
    )
    return trial.judged(wanted, 0, data, None)  # type: ignore[arg-type]


def test_errors_are_counted_by_kind_and_allowed_up_to_a_share():
    records = [record(index, intended=float(index)) for index in range(98)]
    records += [record(98, 98.0, error="timeout", status=0), record(99, 99.0, error="status 500", status=500)]
    assert judged(load(), records)["failures"] == ["2 of 100 requests failed: 1 timeout, 1 status 500"]
    assert judged(load(allowed_error_share=0.02), records)["failures"] == []


def test_refusals_are_right_under_overload_alone():
    refused = [record(index, float(index), status=429, error="status 429", retry_after=1.0) for index in range(50)]
    records = refused + [record(index, float(index)) for index in range(50, 100)]
    assert judged(load("overload"), records)["failures"] == []
    assert judged(load(), records)["failures"] == ["50 of 100 requests failed: 50 refused with Retry-After"]


def test_a_run_without_answers_fails():
    assert judged(load(), [record(0, 5.0, error=UNANSWERED, status=0)])["failures"][0] == "no request was answered"
    assert judged(load(), [])["failures"] == ["no request was due after the warm-up"]
    assert judged(load(), [record()], stop_reason="gone")["failures"][0] == "gone"


def test_a_run_in_which_everything_failed_has_a_report(tmp_path):
    found = judged(load(), [record(index, float(index), error="timeout", status=0) for index in range(5)])
    wanted = load().model_dump(mode="json")
    part = {"type": "scenario", "name": "a", "scenario": wanted, "floor": None, "repeats": [found]}
    part["across"] = {"all": {}, "endpoints": {}}
    machine = {"machine": {"cores": 1, "processor": "p"}, "made_at": "now", "commit": None}
    report.write({"title": "a", "provenance": machine, "parts": [part]}, tmp_path)
    assert "5 of 5 requests failed: 5 timeout" in (tmp_path / "report.html").read_text()
    assert "| sprint | 5 | 5 / 0 | – |" in (tmp_path / "report.md").read_text()


def test_a_soak_fails_when_memory_grows():
    def samples(last: int) -> list[Sample]:
        return [
            Sample(float(at), round(size), None, None, None) for at, size in enumerate(np.linspace(1000, last, 100))
        ]

    records = [record(index, float(index)) for index in range(100)]
    assert judged(load("soak"), records, samples(1050))["failures"] == []
    assert judged(load("soak"), records, samples(1500))["failures"] == [
        "the server's memory grew by 44%, 10% is allowed"
    ]


def test_a_late_generator_makes_a_run_invalid_and_nothing_else():
    records = [record(index, float(index), sent=index + 0.02) for index in range(100)]
    found = judged(load(), records)
    assert found["invalid"] == ["the load generator was late: 20.0 ms at p99, 5.0 ms is allowed"]
    assert found["failures"] == []
    assert trial.exit_code({"repeats": [found]}) == trial.EXIT_INVALID


def test_doubts_are_told():
    growing = [record(index, float(index), latency=0.1 + index / 50) for index in range(100)]
    assert judged(load(), growing)["doubts"][0].startswith("latency rose over the whole run")
    assert judged(load(), growing[:20])["doubts"] == ["20 answers are too few for p99"]


def test_the_gpu_is_seen_through_nvml(monkeypatch):
    calls = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=40 + 20 * handle),
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=2**30),
        "nvmlDeviceGetPowerUsage": lambda handle: 250_000,
        "nvmlDeviceGetName": lambda handle: b"GPU",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "NVMLError": RuntimeError,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**calls))
    gpus = Gpus()
    assert gpus.look() == (0.5, 2 * 2**30, 500.0)
    assert gpus.describe() == {"gpus": ["GPU", "GPU"], "driver": "580.1"}


def test_a_machine_without_nvml_has_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Gpus().look() == (None, None, None)
    assert Gpus().describe() is None


def test_only_a_local_server_has_a_process():
    assert listening_process("http://example.org:3000") is None
    assert listening_process("http://127.0.0.1") is None
    assert resident_bytes(family_of(2**22 - 1)) is None
    assert (resident_bytes(family_of(os.getpid())) or 0) > 2**20


def test_pictures_are_told_apart():
    expected = Expected("", 64, 48, 1, "png", 0)
    first, fault = truth.decoded(picture(64, 48, "png", 1), expected)
    assert first is not None
    assert fault is None
    assert truth.differing(first, first, 0) == (0.0, 0)
    other = first.copy()
    other[0, 0, 0] += 9 if other[0, 0, 0] < 200 else -9
    share, greatest = truth.differing(first, other, 8)
    assert share * first.size == pytest.approx(1)
    assert greatest == 9
    assert not truth.is_flat(first)
    assert truth.is_flat(np.full((4, 4, 3), 7, np.int16))
    assert truth.decoded(picture(64, 48, "png", 1)[:200], expected)[1] == "file is no whole JPEG or PNG"
    assert truth.decoded(picture(64, 50, "png", 1), expected)[1] == "file is 64x50, not 64x48"
    assert truth.decoded(picture(64, 48, "jpeg", 1), expected)[1] == "file is jpeg, not png"


def test_a_sample_has_every_kind_and_the_whole_run():
    records = [record(index, float(index), image_urls=("u",)) for index in range(100)]
    records += [record(100 + index, float(index), endpoint="generate", image_urls=("u",)) for index in range(3)]
    chosen = truth.sample(records, 5)
    assert [each.index for each in chosen] == [100, 101, 102, 0, 99]


def test_the_key_and_what_is_no_json_never_get_into_a_report(tmp_path):
    rest: dict[str, Any] = {"ceiling": None, "probes": [], "scenario": {"name": "secret"}}
    document = {
        "schema": 1,
        "title": "the secret of it",
        "provenance": {"made_at": "now", "commit": None, "machine": {"cores": 1, "processor": "p"}, "server": "secret"},
        "parts": [{"type": "capacity", "name": "<b>secret</b>", "rate": float("inf"), **rest}],
    }
    report.write(document, tmp_path, "secret")
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(texts) == {"result.json", "report.md", "report.html"}
    assert not [name for name, text in texts.items() if "secret" in text]
    assert json.loads(texts["result.json"])["parts"][0]["rate"] is None
    assert "&lt;b&gt;(hidden)&lt;/b&gt;" in texts["report.html"]
    report.write(document, tmp_path, "capacity")
    assert "Largest rate" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.01234, "12.3 ms"), (0.9996, "1 s"), (12.345, "12.3 s"), (1234.5, "1234 s")]
)
def test_seconds_have_three_digits_that_count(value, shown):
    assert charts.shown_seconds(value) == shown


def test_each_stage_has_a_colour_of_its_own():
    names = ["queue", "text", "denoise", "decode", "safety", "resize", "encode", "store", "(outside the stages)"]
    _, styles = charts.stages({"sprint": dict.fromkeys(names, 0.1)})
    assert list(styles) == names
    assert len(set(styles.values())) == len(names)


def test_what_is_counted_against_is_said():
    wanted = load(requests=[{"endpoint": "sprint"}, {"endpoint": "generate"}], objective={"share": 0.995})
    part = {"type": "scenario", "scenario": wanted.model_dump(mode="json")}
    assert report.objective(part) == "Objective: 99.5 % of sprint within 500 ms, generate within 2 s."
    assert report.objective({"type": "comparison", "scenario": part["scenario"]}) == ""


def test_a_comparison_shows_both_sides():
    row = {"name": "sprint p50", "measure": "latency_seconds.p50", "a": [0.1, 0.4], "b": [0.3], "ratio": 1.5}
    cells = report.ratio_cells(row | {"low": 1.4, "high": 1.6, "verdict": "worse"})
    assert cells == ["sprint p50", "200 ms", "300 ms", "1.500", "1.400 to 1.600", "worse"]


def test_ticks_are_round_and_within():
    for high in (0.003, 0.7, 1.0, 42.0, 1234.0):
        found = charts.ticks(0, high)
        assert found[0] == 0
        assert found[-1] <= high * (1 + 1e-9)
        assert 3 <= len(found) <= 11
