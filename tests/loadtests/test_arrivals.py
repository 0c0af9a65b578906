"""Arrival processes: sorted, bounded, repeatable, and with the rate and the intervals that they state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests import arrivals

rates = st.floats(0.5, 50)
durations = st.floats(0.1, 60)


@st.composite
def rate_functions(draw: st.DrawFn) -> arrivals.Rate:
    kind = draw(st.sampled_from(["steady", "steps", "spike", "ramp"]))
    first, second, third = draw(rates), draw(rates), draw(rates)
    if kind == "steady":
        return arrivals.steady(first)
    if kind == "steps":
        return arrivals.steps((first, second, third), draw(st.floats(0.1, 20)))
    if kind == "spike":
        return arrivals.spike(first, second, draw(st.floats(0, 20)), draw(st.floats(0.1, 10)))
    return arrivals.ramp(draw(st.sampled_from([0.0, first])), second, draw(st.floats(0.1, 60)))


intervals = st.sampled_from([arrivals.exponential, arrivals.constant, arrivals.Gamma(0.2), arrivals.Gamma(7.0)])


def make(rate: arrivals.Rate, law: arrivals.Intervals, duration: float, seed: int) -> arrivals.Times:
    return arrivals.arrival_times(rate, law, duration, np.random.default_rng(seed))


@given(rate_functions(), intervals, durations, st.integers(0, 99))
def test_times_are_sorted_within_the_duration_and_the_seeds(rate, law, duration, seed):
    times = make(rate, law, duration, seed)
    assert (np.diff(times) >= 0).all()
    assert not len(times) or (times[0] >= 0 and times[-1] < duration)
    np.testing.assert_array_equal(times, make(rate, law, duration, seed))


@given(rate_functions(), durations)
def test_a_constant_process_has_the_integral_of_its_rate(rate, duration):
    """One arrival for each whole unit of the integral, which the midpoint rule gives independently."""
    cells = 10_000
    width = duration / cells
    expected = sum(rate.at((cell + 0.5) * width) for cell in range(cells)) * width
    # A jump within a cell is counted half a cell too early or too late, and no process here has more than two.
    jumps = 2 * (max(rate.per_second) - min(rate.per_second)) * width / 2
    assert rate.expected(duration) == pytest.approx(expected, rel=1e-6, abs=jumps + 1e-9)
    assert abs(len(make(rate, arrivals.constant, duration, 0)) - rate.expected(duration)) <= 1


@given(rate_functions(), durations, st.integers(0, 99))
@settings(max_examples=50)
def test_poisson_counts_scatter_as_the_square_root(rate, duration, seed):
    expected = rate.expected(duration)
    assert abs(len(make(rate, arrivals.exponential, duration, seed)) - expected) <= 6 * math.sqrt(expected) + 3


@pytest.mark.parametrize(
    ("law", "variation"),
    [(arrivals.exponential, 1.0), (arrivals.constant, 0.0), (arrivals.Gamma(0.25), 2.0), (arrivals.Gamma(4.0), 0.5)],
)
def test_intervals_have_the_stated_mean_and_coefficient_of_variation(law, variation):
    gaps = np.diff(make(arrivals.steady(20.0), law, 5000, 3))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03, abs=1e-9)


def test_poisson_intervals_are_exponential():
    """Kolmogorov-Smirnov distance below its 0.1 % critical value, 1.95 / sqrt(n)."""
    gaps = np.sort(np.diff(make(arrivals.steady(50.0), arrivals.exponential, 400, 11)))
    distance = np.abs((1 - np.exp(-50 * gaps)) - np.arange(1, len(gaps) + 1) / len(gaps)).max()
    assert distance < 1.95 / math.sqrt(len(gaps))


def test_a_ramp_grows_and_a_spike_stays_in_its_place():
    ramp = make(arrivals.ramp(0, 40, 100), arrivals.exponential, 100, 5)
    assert np.histogram(ramp, [0, 50, 100])[0] == pytest.approx([500, 1500], rel=0.1)
    spike = make(arrivals.spike(2, 50, 30, 10), arrivals.exponential, 100, 5)
    assert np.histogram(spike, [0, 30, 40, 100])[0] == pytest.approx([60, 500, 120], rel=0.25)


def test_a_trace_is_replayed_from_its_first_time_at_another_speed():
    np.testing.assert_allclose(arrivals.replayed([12.0, 10.0, 11.0, 40.0], 2.0, 10.0), [0.0, 0.5, 1.0])
    assert len(arrivals.replayed([], 1.0, 10.0)) == 0
