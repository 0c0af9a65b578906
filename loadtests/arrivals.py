"""When requests are due: arrival processes as pure functions of their parameters and a random generator.

Each process has a mean rate that is a piecewise linear function of time, in requests a second. Its
arrivals are those of a process of unit rate on the axis of the integrated rate, carried back to time
(Cinlar, Introduction to Stochastic Processes, 1975, section 4.7): intervals on that axis are
exponential (Poisson), gamma distributed, or one. So the number of arrivals follows the rate whatever
the intervals, and a constant process is a Poisson process without its randomness.

Invariant: times are sorted, not negative and below the duration; the same parameters and generator
state give the same times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

_CHUNK = 4096


class Intervals(Protocol):
    """Draws `count` intervals with mean one."""

    def __call__(self, generator: np.random.Generator, count: int) -> Times: ...


def exponential(generator: np.random.Generator, count: int) -> Times:
    """Intervals of a Poisson process."""
    return generator.exponential(1.0, count)


def constant(generator: np.random.Generator, count: int) -> Times:
    """Intervals that are all alike."""
    return np.ones(count)


@dataclass(frozen=True)
class Gamma:
    """Gamma distributed intervals.

    Args:
        burstiness: the shape: 1 is Poisson, less is burstier, more is smoother; the squared coefficient
            of variation is its inverse.
    """

    burstiness: float

    def __call__(self, generator: np.random.Generator, count: int) -> Times:
        return generator.gamma(self.burstiness, 1.0 / self.burstiness, count)


@dataclass(frozen=True)
class Rate:
    """A rate over time: linear between corners; a jump is two corners at one time.

    Args:
        seconds: of each corner, ascending, the first 0.
        per_second: the rate at each corner; the last holds for ever.
    """

    seconds: tuple[float, ...]
    per_second: tuple[float, ...]

    def at(self, seconds: float) -> float:
        """The rate at a time; at a jump, the one after it."""
        index = int(np.searchsorted(self.seconds, seconds, side="right")) - 1
        if index + 1 >= len(self.seconds):
            return self.per_second[-1]
        span = self.seconds[index + 1] - self.seconds[index]
        share = (seconds - self.seconds[index]) / span
        return self.per_second[index] + share * (self.per_second[index + 1] - self.per_second[index])

    def expected(self, until_seconds: float) -> float:
        """Mean number of arrivals from 0 to a time: the integral of the rate."""
        corners = self._cut(until_seconds)
        return float(sum(span * (first + last) / 2 for span, first, last in corners))

    def _cut(self, until_seconds: float) -> list[tuple[float, float, float]]:
        """Pieces up to a time: seconds, rate at the start, rate at the end."""
        pieces = []
        for index, start in enumerate(self.seconds):
            is_last = index + 1 == len(self.seconds)
            end = until_seconds if is_last else min(self.seconds[index + 1], until_seconds)
            if end <= start:
                continue
            first = self.per_second[index]
            if is_last:
                last = first
            else:
                span = self.seconds[index + 1] - start
                last = first + (self.per_second[index + 1] - first) * (end - start) / span
            pieces.append((end - start, first, last))
        return pieces

    def times(self, integrated: Times, until_seconds: float) -> Times:
        """The times at which the integral of the rate reaches each value, as far as it does before the end."""
        found: list[Times] = []
        start, done = 0.0, 0.0
        for span, first, last in self._cut(until_seconds):
            area = span * (first + last) / 2
            within = integrated[(integrated >= done) & (integrated < done + area)] - done
            found.append(start + _solve(within, first, (last - first) / span))
            start += span
            done += area
        times = np.concatenate(found) if found else np.empty(0)
        return times[times < until_seconds]


def _solve(area: Times, first: float, slope: float) -> Times:
    """X >= 0 with first * x + slope * x**2 / 2 = area, in the form that stays exact as the slope goes to 0."""
    if not len(area):
        return area
    root = np.sqrt(np.maximum(first * first + 2 * slope * area, 0.0))
    denominator = first + root
    return np.divide(2 * area, denominator, out=np.zeros_like(area), where=denominator > 0)


def steady(per_second: float) -> Rate:
    """The same rate for ever."""
    return Rate((0.0,), (per_second,))


def steps(per_second: Sequence[float], seconds_each: float) -> Rate:
    """One rate after the other; the last one holds."""
    times, rates = [0.0], [per_second[0]]
    for index, rate in enumerate(per_second[1:], start=1):
        times += [index * seconds_each] * 2
        rates += [per_second[index - 1], rate]
    return Rate(tuple(times), tuple(rates))


def spike(base: float, peak: float, at_seconds: float, for_seconds: float) -> Rate:
    """A base rate with one rectangle on it."""
    end = at_seconds + for_seconds
    if at_seconds == 0:
        return Rate((0.0, end, end), (peak, peak, base))
    return Rate((0.0, at_seconds, at_seconds, end, end), (base, base, peak, peak, base))


def ramp(first: float, last: float, seconds: float) -> Rate:
    """A rate that changes linearly and then holds."""
    return Rate((0.0, seconds), (first, last))


def arrival_times(rate: Rate, intervals: Intervals, duration_seconds: float, generator: np.random.Generator) -> Times:
    """Arrivals from 0 to the duration, in seconds.

    Args:
        rate: requests a second over time.
        intervals: their law on the axis of the integrated rate.
        duration_seconds: no arrival is at or after it.
        generator: the source of randomness.
    """
    total = rate.expected(duration_seconds)
    drawn: list[Times] = []
    reached = 0.0
    while reached < total:
        chunk = reached + np.cumsum(intervals(generator, _CHUNK))
        drawn.append(chunk)
        reached = float(chunk[-1])
    integrated = np.concatenate(drawn) if drawn else np.empty(0)
    return rate.times(integrated, duration_seconds)


def replayed(recorded: Sequence[float], speed: float, duration_seconds: float) -> Times:
    """Recorded times from their first one on, `speed` times as fast, as far as the duration goes."""
    times = np.sort(np.asarray(recorded, dtype=np.float64))
    if len(times):
        times = (times - times[0]) / speed
    return times[times < duration_seconds]
