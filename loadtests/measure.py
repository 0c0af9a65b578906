"""From records to figures. Percentiles are exact: each is a latency that was measured (nearest rank).

Which requests count: latencies are those of requests that were due after the warm-up; rates count the
answers that came between the end of the warm-up and the end of the run. A request that failed has no
latency; it counts against the objective and is shown beside every latency.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loadtests import scenario
from loadtests.contract import Endpoint
from loadtests.records import CANCELLED, UNANSWERED, Record

# Not a stage, but the sum of them as the server sees it.
_WHOLE = "total"
LAG_SECONDS = 0.005
LAG_SHARE = 0.01
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}

# Two-sided 95 % quantiles of Student's t distribution for 1 to 30 degrees of freedom
# (NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2); beyond, the normal one.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values do not exceed.

    None if there are too few values for it to differ from the greatest one: fewer than 1 / (1 - share).
    """
    if len(values) * (1 - share) < 1 - 1e-9:
        return None
    ordered = np.sort(np.asarray(values))
    return float(ordered[math.ceil(share * len(ordered) - 1e-9) - 1])


def student(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96


def interval(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and 95 % confidence interval of repeats, by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = student(len(values) - 1) * deviation / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "repeats": len(values)}


def latencies(values: Sequence[float]) -> dict[str, Any]:
    """Count, mean, exact percentiles and the greatest, in seconds; None for what there is not."""
    if not len(values):
        return {"count": 0, "mean": None, "max": None} | dict.fromkeys(QUANTILES)
    figures: dict[str, Any] = {"count": len(values), "mean": float(np.mean(values)), "max": float(np.max(values))}
    return figures | {name: quantile(values, share) for name, share in QUANTILES.items()}


def figures(
    records: Sequence[Record], begin: float, end: float, objective: scenario.Objective, prices: scenario.Prices
) -> dict[str, Any]:
    """The figures of some requests of a run.

    Args:
        records: of one group.
        begin, end: seconds between which the run counts.
        objective: what is good.
        prices: for the cost.
    """
    due = [record for record in records if begin <= record.intended < end]
    answered = [record for record in due if record.ok]
    came = [record for record in records if record.ok and begin <= record.done < end]
    seconds = end - begin
    images = sum(record.num_images for record in came)
    pixels = sum(record.num_images * record.width * record.height for record in came)
    judged = [record for record in due if record.error != CANCELLED]
    good = [record for record in answered if meets(record, objective)]
    refused = [record for record in due if record.refused]
    units = sum(record.billable_units for record in came)
    batch_sizes = Counter(round(record.batch_size) for record in answered if record.batch_size)
    return {
        "requests": len(due),
        "answered": len(answered),
        "failed": sum(record.failed for record in due),
        "refused": len(refused),
        "cancelled": sum(record.error == CANCELLED for record in due),
        "errors": dict(Counter(str(record.error) for record in due if record.failed).most_common()),
        "retry_after_seconds": latencies([float(record.retry_after or 0) for record in refused]),
        "latency_seconds": latencies([record.latency for record in answered]),
        "from_sent_seconds": latencies([record.done - record.sent for record in answered]),
        "requests_per_second": len(came) / seconds,
        "images_per_second": images / seconds,
        "megapixels_per_second": pixels / 1e6 / seconds,
        "goodput_per_second": sum(meets(record, objective) for record in came) / seconds,
        "good_share": len(good) / len(judged) if judged else None,
        "keeps_objective": bool(judged) and len(good) >= objective.share * len(judged) - 1e-9,
        "stage_seconds": stages(answered),
        "batch_sizes": {str(size): count for size, count in sorted(batch_sizes.items())},
        "billable_units": units,
        "cost_per_1000_images": _cost(images, seconds, units, prices),
    }


def meets(record: Record, objective: scenario.Objective) -> bool:
    """Answered rightly and in time."""
    endpoint: Endpoint = "generate" if record.endpoint == "generate" else "sprint"
    return record.ok and record.latency <= objective.seconds(endpoint)


def stages(answered: Sequence[Record]) -> dict[str, float]:
    """Mean seconds of each server stage, of what the stages leave, and of the generator's lag.

    A stage that not every answer has counts as 0 where it is missing.
    """
    if not answered or not any(record.stages for record in answered):
        return {}
    names = [name for name in dict.fromkeys(name for record in answered for name in record.stages) if name != _WHOLE]
    means = {name: float(np.mean([record.stages.get(name, 0.0) for record in answered])) for name in names}
    whole = float(np.mean([record.done - record.sent for record in answered]))
    lag = float(np.mean([record.lag for record in answered]))
    return means | {"(outside the stages)": max(0.0, whole - sum(means.values())), "(generator's lag)": lag}


def _cost(images: int, seconds: float, units: int, prices: scenario.Prices) -> dict[str, float]:
    """What a thousand images cost to make, and what is billed for them."""
    if not images:
        return {}
    cost = {}
    if prices.machine_per_hour:
        cost["machine"] = prices.machine_per_hour * seconds / 3600 / images * 1000
    if prices.billable_unit:
        cost["billed"] = prices.billable_unit * units / images * 1000
    return cost


def grouped(records: Sequence[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Records by a key, sorted."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return dict(sorted(groups.items()))


def across(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Intervals over repeats of each number that every repeat has, by the same names; {} for one repeat."""
    if len(repeats) < 2:
        return {}
    found: dict[str, Any] = {}
    for name, value in repeats[0].items():
        others = [each.get(name) for each in repeats]
        if isinstance(value, dict):
            nested = across([other for other in others if isinstance(other, dict)])
            if nested:
                found[name] = nested
        elif type(value) in {int, float} and all(type(other) in {int, float} for other in others):
            found[name] = interval([float(other) for other in others if other is not None])
    return found


def generator_figures(records: Sequence[Record], lateness: Sequence[float], p50: float | None) -> dict[str, Any]:
    """How late the generator was, and whether that is too late: p99 over 5 ms or 1 % of p50, whichever is larger."""
    limit = max(LAG_SECONDS, LAG_SHARE * (p50 or 0.0))
    lags = [record.lag for record in records if record.error != UNANSWERED]
    lag, beat = _percentile(lags), _percentile(lateness)
    return {
        "lag_seconds": latencies(lags),
        "lag_p99_seconds": lag,
        "heartbeat_p99_seconds": beat,
        "limit_seconds": limit,
        "valid": max(lag, beat) <= limit,
    }


def _percentile(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99, method="inverted_cdf")) if len(values) else 0.0
