"""Figures against hand-made examples and independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import measure, scenario, steady
from loadtests.measure import generator_figures
from loadtests.records import CANCELLED, Record
from loadtests.timing import server_timing


def record(index: int = 0, intended: float = 0.0, latency: float = 0.1, **changes) -> Record:
    values = {"endpoint": "sprint", "width": 1000, "height": 1000, "output_format": "jpeg", "num_images": 1, "steps": 2}
    sent = {"sent": intended, "done": intended + latency, "status": 200}
    return Record(**{"index": index, "intended": intended, **values, **sent, **changes})


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(values, share):
    found = measure.quantile(values, share)
    if len(values) * (1 - share) < 1 - 1e-9:
        assert found is None
        return
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_percentiles_of_one_to_a_thousand():
    found = measure.latencies([float(value) for value in range(1, 1001)])
    expected = {"count": 1000, "mean": 500.5, "max": 1000, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "p999": 999}
    assert found == pytest.approx(expected)


def test_intervals_cover_the_mean_as_often_as_they_say():
    draw = np.random.default_rng(1)
    intervals = [measure.interval(draw.normal(10, 3, 4).tolist()) for _ in range(4000)]
    covered = np.mean([each["low"] <= 10 <= each["high"] for each in intervals if each])
    assert covered == pytest.approx(0.95, abs=0.012)
    assert measure.interval([1.0]) is None


def test_figures_of_a_hand_made_run():
    records = [record(index, intended=index * 0.5, latency=0.2) for index in range(20)]
    records[4] = record(4, 2.0, 0.9)  # late
    records[5] = record(5, 2.5, 0.1, status=500, error="status 500")
    records[6] = record(6, 3.0, 0.1, status=429, error="status 429", retry_after=3.0)
    records[7] = record(7, 3.5, 0.1, status=429, error="status 429")
    records[8] = record(8, 4.0, 0.1, error=CANCELLED)
    records[9] = record(9, 4.5, 0.2, billable_units=2, num_images=2, batch_size=4.0)
    prices = scenario.Prices(machine_per_hour=3.6, billable_unit=0.01)
    found = measure.figures(records, 1.0, 11.0, scenario.Objective(), prices)
    assert (found["requests"], found["answered"], found["failed"], found["refused"], found["cancelled"]) == (
        18,
        14,
        2,
        1,
        1,
    )
    assert found["errors"] == {"status 500": 1, "status 429": 1}
    assert found["retry_after_seconds"]["max"] == 3.0
    # 14 answers with 15 pictures of a megapixel in ten seconds; one of 17 that count is late and three are no answers.
    assert found["images_per_second"] == pytest.approx(1.5)
    assert found["megapixels_per_second"] == pytest.approx(1.5)
    assert found["goodput_per_second"] == pytest.approx(1.3)
    assert found["good_share"] == pytest.approx(13 / 17)
    assert found["keeps_objective"] is False
    assert found["batch_sizes"] == {"4": 1}
    assert found["latency_seconds"]["max"] == pytest.approx(0.9)
    # 15 pictures in 10 s at 3.6 an hour: 0.01 for 15; two units at 0.01 for 15.
    assert found["cost_per_1000_images"] == pytest.approx({"machine": 1000 * 0.01 / 15, "billed": 1000 * 0.02 / 15})


def test_stages_add_up_to_the_latency():
    answered = [record(0, sent=0.01, done=0.5, stages={"queue": 0.1, "denoise": 0.3})]
    found = measure.stages(answered)
    assert sum(found.values()) == pytest.approx(0.5)
    assert found["(outside the stages)"] == pytest.approx(0.09)
    assert found["(generator's lag)"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("header", "stages", "batch"),
    [
        ("queue;dur=0.2, denoise;dur=900.5", {"queue": 0.0002, "denoise": 0.9005}, None),
        ('batch;desc="4", denoise;dur=3', {"denoise": 0.003}, 4),
        ('denoise;dur=3;desc="batch=2.5"', {"denoise": 0.003}, 2.5),
        ('denoise;desc="batch 8" ; dur=3', {"denoise": 0.003}, 8),
        ("batch;desc=3", {}, 3),
        ("", {}, None),
        ("queue;dur=x, , text", {}, None),
    ],
)
def test_server_timing(header, stages, batch):
    found, size = server_timing(header)
    assert found == pytest.approx(stages)
    assert size == batch


def test_the_generator_is_late_above_five_milliseconds_or_a_hundredth_of_p50():
    records = [record(index, sent=0.006) for index in range(100)]
    assert generator_figures(records, [], 0.4)["valid"] is False
    assert generator_figures(records, [], 0.7)["valid"] is True
    assert generator_figures([record()], [0.006] * 100, 0.1)["valid"] is False


def test_mser_finds_the_end_of_a_transient():
    draw = np.random.default_rng(2)
    values = draw.normal(1, 0.1, 1000)
    values[:200] += np.linspace(5, 0, 200)
    end = steady.mser5(values)
    assert end is not None
    assert 150 <= end <= 230
    assert (steady.mser5(draw.normal(1, 0.1, 1000)) or 0) < 500
    assert steady.mser5(np.ones(20)) is None


def test_a_growing_queue_drifts_and_a_steady_one_does_not():
    draw = np.random.default_rng(3)
    at = np.arange(1000) / 10
    assert steady.steadiness(at, draw.exponential(1, 1000) + at / 20).drifting
    assert not steady.steadiness(at, draw.exponential(1, 1000)).drifting
    assert math.isclose(steady.rank_correlation(at**3), 1.0)
