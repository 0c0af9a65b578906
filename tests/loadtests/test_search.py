"""The search on queues that are computed, not served; and what ends a run early."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests import search
from loadtests.scenario import Objective
from tests.loadtests.queues import lindley, md1_sojourn_quantile
from tests.loadtests.test_measure import record


@given(st.floats(0.02, 5000), st.floats(0.1, 1000))
def test_a_sharp_capacity_is_found_from_anywhere(capacity, start):
    found = search.largest_rate(
        lambda rate: search.Probe(rate, rate <= capacity), start, start / 1e6, start * 1e6, precision=0.02
    )
    assert found.rate <= capacity
    assert found.ceiling is not None
    assert capacity < found.ceiling <= found.rate * 1.02 * (1 + 1e-9)


def test_nothing_and_everything_keep_the_objective():
    assert search.largest_rate(lambda rate: search.Probe(rate, False), 8, 1, 64).rate == 0
    everything = search.largest_rate(lambda rate: search.Probe(rate, True), 8, 1, 64)
    assert (everything.rate, everything.ceiling) == (64, None)


@given(st.integers(0, 2**20))
@settings(max_examples=6, deadline=None)
def test_the_known_capacity_of_an_md1_queue_is_found_within_five_percent(seed):
    """Capacity: the rate at which the closed form's p99 is the objective."""
    service, limit = 0.02, 0.2
    draw = np.random.default_rng(seed)

    def probe(rate: float) -> search.Probe:
        arrivals = np.cumsum(draw.exponential(1 / rate, 60_000))
        sojourn = lindley(arrivals, np.full(len(arrivals), service))
        return search.Probe(rate, bool(np.quantile(sojourn, 0.99) <= limit))

    low, high = 1.0, 1 / service
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if md1_sojourn_quantile(middle, service, 0.99) <= limit else (low, middle)
    found = search.largest_rate(probe, 10, 1, 1000, precision=0.01)
    assert found.rate == pytest.approx(low, rel=0.05)


def test_a_run_ends_when_more_have_missed_than_may():
    judge = search.Judge(Objective(share=0.9), planned=30, warm_up_seconds=1.0)
    assert judge.answered(record(intended=0.5, latency=9)) is None
    for _ in range(3):
        assert judge.answered(record(intended=2.0, latency=0.6)) is None
    assert judge.answered(record(intended=2.0, latency=0.4)) is None
    assert judge.answered(record(intended=2.0, latency=0.6)) == search.HOPELESS


def test_what_is_still_out_counts_as_missed_once_it_is_too_old():
    judge = search.Judge(Objective(share=0.9), planned=20, warm_up_seconds=0.0)
    assert judge.waiting(2.1, [0.0, 0.05, 1.0]) is None
    assert judge.waiting(2.1, [0.0, 0.05, 0.08]) == search.HOPELESS


def test_the_knee_of_an_mm1_queue_is_at_half_load():
    """Kleinrock's result: power is greatest where the utilisation is one half."""
    loads = [0.1 * step for step in range(1, 10)]
    points = [(load, 1 / (1 - load)) for load in loads]
    found = search.knee(points)
    assert found is not None
    assert math.isclose(loads[found], 0.5)
    assert search.knee([]) is None
