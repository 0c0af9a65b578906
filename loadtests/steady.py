"""Whether a run had reached a steady state when its warm-up was over, and whether it stayed there.

Nothing is cut off by what is found here: leaving out what looks bad would flatter the tail. The warm-up
that the scenario states is excluded; these two say whether that was enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BATCH = 5
_FEWEST_BATCHES = 10
_DRIFT = 0.5
_DRIFT_BATCHES = 20
_DRIFT_GROWTH = 1.5

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Steadiness:
    """What was found.

    Args:
        settled_at: seconds at which the transient was over, by MSER-5; None where it was not, or where
            there were too few requests to tell.
        drifting: latencies rose over the whole run, as they do when the queue grows.
        told: whether there were enough requests to tell.
    """

    settled_at: float | None
    drifting: bool
    told: bool


def mser5(values: Values) -> int | None:
    """Where the transient of a series ends: the index that minimises the standard error of what follows.

    Source: White, "An effective truncation heuristic for bias reduction in simulation output",
    Simulation 69 (1997), with batches of five. None if the minimum is in the second half of the series
    (then it has not settled), or if the series is shorter than ten batches.
    """
    batches = len(values) // _BATCH
    if batches < _FEWEST_BATCHES:
        return None
    means = values[: batches * _BATCH].reshape(batches, _BATCH).mean(axis=1)
    remaining = np.arange(batches, 0, -1)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    error = (squares - total**2 / remaining) / remaining**2
    # The last few batches are too few to be believed.
    candidates = error[: batches - _BATCH]
    best = int(np.argmin(candidates))
    return None if best > batches // 2 else best * _BATCH


def rank_correlation(values: Values) -> float:
    """Spearman's correlation of a series with its index."""
    if len(values) < 3:
        return 0.0
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def steadiness(intended: Values, latency: Values) -> Steadiness:
    """Look at the requests of a run, in the order in which they were due, warm-up included."""
    order = np.argsort(intended, kind="stable")
    intended, latency = intended[order], latency[order]
    if len(latency) < _BATCH * _FEWEST_BATCHES:
        return Steadiness(None, False, False)
    settled = mser5(latency)
    # Means of twenty parts: single requests are far too noisy to show a trend.
    parts = np.array([part.mean() for part in np.array_split(latency, _DRIFT_BATCHES)])
    third = len(parts) // 3
    grew = parts[-third:].mean() > _DRIFT_GROWTH * parts[:third].mean()
    drifting = bool(grew and rank_correlation(parts) > _DRIFT)
    return Steadiness(None if settled is None else float(intended[settled]), drifting, True)
