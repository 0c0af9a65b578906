"""Two servers, measured in turns A B B A, and the ratio of what they do.

In each block of four runs drift that is linear in time hurts both alike. The ratio of a block is that
of the geometric means of its two runs each; over blocks its logarithm has a Student interval. B is worse
when the whole interval lies beyond the margin, and "as good" when the whole interval lies within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loadtests.errors import HarnessError, reason
from loadtests.measure import student

Arm = Literal["A", "B"]
ORDER: tuple[Arm, ...] = ("A", "B", "B", "A")

# What is compared, and whether more of it is better.
MEASURES = {
    "latency_seconds.p50": False,
    "latency_seconds.p99": False,
    "images_per_second": True,
    "goodput_per_second": True,
}


@dataclass(frozen=True)
class Ratio:
    """B over A.

    Args:
        ratio: geometric mean over blocks.
        low, high: its 95 % interval; infinite ends for a single block.
        verdict: "worse", "better", "as good" or "undecided".
    """

    ratio: float
    low: float
    high: float
    verdict: str


def compared(first: Sequence[float], second: Sequence[float], margin: float, more_is_better: bool) -> Ratio:
    """The ratio of paired blocks.

    Args:
        first, second: a positive value of A and of B for each block.
        margin: a relative difference that does not matter.
        more_is_better: whether B is worse when the ratio is below one.
    """
    logs = np.log(np.asarray(second)) - np.log(np.asarray(first))
    mean = float(logs.mean())
    half = student(len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    low, high = math.exp(mean - half), (math.exp(mean + half) if half < 700 else math.inf)
    worse, better = (high < 1 - margin, low > 1 + margin) if more_is_better else (low > 1 + margin, high < 1 - margin)
    if worse:
        verdict = "worse"
    elif better:
        verdict = "better"
    else:
        verdict = "as good" if low >= 1 - margin and high <= 1 + margin else "undecided"
    return Ratio(math.exp(mean), low, high, verdict)


def blocks_of(values: Sequence[tuple[Arm, float]]) -> tuple[list[float], list[float]]:
    """Geometric means of A and of B for each complete block of four runs."""
    first: list[float] = []
    second: list[float] = []
    for start in range(0, len(values) - len(values) % len(ORDER), len(ORDER)):
        block = values[start : start + len(ORDER)]
        for arm, means in (("A", first), ("B", second)):
            means.append(math.exp(float(np.mean([math.log(value) for name, value in block if name == arm]))))
    return first, second


def interleaved(run: Callable[[Arm, int], dict[str, Any]], blocks: int, margin: float) -> dict[str, Any]:
    """Make the runs and compare them, by endpoint. What ends them early leaves the blocks that are complete.

    Args:
        run: makes one run and gives its document; it is called with the arm and the number of the run.
        blocks: of four runs.
        margin: see `compared`.

    Raises:
        HarnessError, KeyboardInterrupt: not even one run was made.
    """
    documents: list[tuple[Arm, dict[str, Any]]] = []
    failures = []
    try:
        for number, arm in enumerate(list(ORDER) * blocks):
            documents.append((arm, run(arm, number)))
    except (HarnessError, KeyboardInterrupt) as error:
        if not documents:
            raise
        failures.append(reason(error))
    complete = documents[: len(documents) - len(documents) % len(ORDER)]
    rows = []
    names = sorted({name for _, each in complete for name in each["endpoints"]})
    for endpoint in names:
        for measure, more_is_better in MEASURES.items():
            values = [(arm, _value(each["endpoints"].get(endpoint, {}), measure)) for arm, each in complete]
            usable = [(arm, value) for arm, value in values if value]
            if len(usable) < len(values):
                continue
            first, second = blocks_of(usable)
            ratio = compared(first, second, margin, more_is_better)
            label = (
                f"{endpoint} {measure.removeprefix('latency_seconds.').replace('_per_second', '/s').replace('_', ' ')}"
            )
            rows.append({"name": label, "measure": measure, "a": first, "b": second, **vars(ratio)})
    return {
        "margin": margin,
        "blocks": len(complete) // len(ORDER),
        "rows": rows,
        "runs": [{"arm": arm, "failures": each["failures"], "invalid": each["invalid"]} for arm, each in documents],
        "failures": [*(f"{arm}: {line}" for arm, each in documents for line in each["failures"]), *failures],
        "invalid": [f"{arm}: {line}" for arm, each in documents for line in each["invalid"]],
        "worse": [row["name"] for row in rows if row["verdict"] == "worse"],
    }


def _value(figures: dict[str, Any], path: str) -> float | None:
    value: Any = figures
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if value else None
