"""The largest rate that keeps the objective, and where throughput stops paying for latency. Pure Python.

`largest_rate` asks a function whether a rate keeps the objective: first doubling or halving until the
answer changes, then bisecting. `Judge` ends a run as soon as its outcome is certain, so that rates far
above capacity cost seconds. The knee is Kleinrock's: where throughput over latency ("power") is
greatest (Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in computer
communications", ICC 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtests.records import CANCELLED, Record
from loadtests.scenario import Objective

HOPELESS = "the objective cannot be kept any more"

_MOST_PROBES = 40


@dataclass(frozen=True)
class Probe:
    """One rate that was tried.

    Args:
        rate: requests a second that were offered.
        keeps: whether the objective was kept.
        throughput: answers a second that came.
        latency: p50 and p99 in seconds, None where there were too few answers.
        stopped_early: the outcome was certain before the end.
    """

    rate: float
    keeps: bool
    throughput: float | None = None
    p50: float | None = None
    p99: float | None = None
    stopped_early: bool = False


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Args:
        rate: the largest rate known to keep the objective, 0 if none did.
        ceiling: the smallest rate known not to keep it, None if every one did.
        probes: in the order in which they were made.
    """

    rate: float
    ceiling: float | None
    probes: tuple[Probe, ...]


def largest_rate(
    probe: Callable[[float], Probe], start: float, least: float, most: float, precision: float = 0.03
) -> Found:
    """Bracket, then bisect on the logarithm of the rate.

    Args:
        probe: tries a rate.
        start: the first rate.
        least, most: rates beyond which nothing is tried.
        precision: the search ends when ceiling over rate is below one plus this.
    """
    probes: list[Probe] = []
    low, high = 0.0, math.inf
    rate = min(max(start, least), most)
    while len(probes) < _MOST_PROBES:
        tried = probe(rate)
        probes.append(tried)
        if tried.keeps:
            low = max(low, rate)
        else:
            high = min(high, rate)
        if math.isinf(high):
            if rate >= most:
                break
            rate = min(rate * 2, most)
        elif low == 0:
            if rate <= least:
                break
            rate = max(rate / 2, least)
        elif high / low <= 1 + precision:
            break
        else:
            rate = math.sqrt(low * high)
    return Found(low, None if math.isinf(high) else high, tuple(probes))


class Judge:
    """Says during a run whether its outcome is certain.

    Of `planned` requests after the warm-up at most `(1 - share) * planned` may miss the objective. One
    that is still out and older than the objective has missed it. As soon as more have missed, the rest
    of the run cannot save it. It never says early that the objective is kept: the tail comes last.

    Args:
        objective: what is good.
        planned: requests that are due after the warm-up.
        warm_up_seconds: those due before it do not count.
    """

    def __init__(self, objective: Objective, planned: int, warm_up_seconds: float) -> None:
        self._objective = objective
        self._allowed = (1 - objective.share) * planned + 1e-9
        self._warm_up_seconds = warm_up_seconds
        self._longest = max(objective.generate_seconds, objective.sprint_seconds)
        self.missed = 0

    def answered(self, record: Record) -> str | None:
        """Count a record; a reason to stop if the outcome is certain."""
        if record.intended < self._warm_up_seconds or record.error == CANCELLED:
            return None
        limit = self._objective.seconds("generate" if record.endpoint == "generate" else "sprint")
        self.missed += not (record.ok and record.latency <= limit)
        return HOPELESS if self.missed > self._allowed else None

    def waiting(self, now: float, due: Sequence[float]) -> str | None:
        """Look at what is out; a reason to stop if the outcome is certain."""
        late = sum(now - each > self._longest for each in due if each >= self._warm_up_seconds)
        return HOPELESS if self.missed + late > self._allowed else None


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Index of the point with the greatest throughput over latency, None without points.

    Args:
        points: throughput a second and latency in seconds.
    """
    power = [throughput / latency if latency > 0 else 0.0 for throughput, latency in points]
    return power.index(max(power)) if power else None
