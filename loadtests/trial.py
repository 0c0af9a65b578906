"""A scenario's runs, judged and made into the document that reports are drawn from.

A run can be bad in three ways, that are kept apart: it *failed* (errors, wrong pictures, a dead server),
it is *invalid* (the generator was late, so its figures say nothing about the server), or it is open to
*doubt* (too short, not steady). Only the first two give an exit code.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtests import measure, scenario, steady, truth
from loadtests.contract import Expected
from loadtests.errors import Interrupted
from loadtests.floor import Architecture, share_of_floor
from loadtests.records import Record
from loadtests.schedule import Source

if TYPE_CHECKING:
    from loadtests.harness import Harness, Judge
    from loadtests.monitor import Sample
    from loadtests.rundata import RunData

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INVALID, EXIT_SLOWER = range(5)

_POINTS = 1500
_CURVE = 120
_SOAK_PARTS = 10

Say = Callable[[str], None]


@dataclass(frozen=True)
class Floor:
    """What the share of the floor is counted with.

    Args:
        architecture: of the served checkpoints.
        matrix_rate: operations a second of the hardware.
        origin: where that rate is from, in words.
    """

    architecture: Architecture
    matrix_rate: float
    origin: str


def run_scenario(
    harness: Harness, load: scenario.Load, folder: Path, floor: Floor | None = None, say: Say = print
) -> dict[str, Any]:
    """All repeats of a scenario, and a look at their pictures; fewer repeats if one was stopped or interrupted.

    Args:
        harness: sends the requests.
        load: the scenario.
        folder: for the records of each repeat, written as they come.
        floor: for the share of the floor, None to leave it out.
        say: told what happens, a line at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    repeats = []
    for repeat in range(load.repeats):
        say(f"{load.name}, run {repeat + 1} of {load.repeats}: {load.duration_seconds:g} s")
        try:
            data = harness.run(load, repeat, folder / f"{load.name}-{repeat + 1}.jsonl")
        except Interrupted as interrupted:
            data = interrupted.data
        document = judged(load, repeat, data, floor)
        if data.stop_reason is None:
            finding = look_at_pictures(harness, load, repeat, data)
            document["truth"] = asdict(finding)
            document["failures"] += list(finding.faults)
        repeats.append(document)
        for line in [*document["failures"], *document["invalid"], *document["doubts"]]:
            say(f"{load.name}, run {repeat + 1}: {line}")
        if data.stop_reason is not None:
            break
    return {
        "scenario": load.model_dump(mode="json"),
        "floor": floor and {"model": floor.architecture.name, "matrix_rate": floor.matrix_rate, "origin": floor.origin},
        "repeats": repeats,
        "across": {
            "all": measure.across([each["all"] for each in repeats]),
            "endpoints": measure.across([each["endpoints"] for each in repeats]),
        },
    }


def run_probe(harness: Harness, load: scenario.Load, repeat: int, judge: Judge) -> tuple[RunData, dict[str, Any]]:
    """One run without a look at its pictures, that may end early."""
    data = harness.run(load, repeat, judge=judge)
    begin, end = window(load, data)
    return data, measure.figures(data.records, begin, end, load.objective, load.prices)


def look_at_pictures(harness: Harness, load: scenario.Load, repeat: int, data: RunData) -> truth.Finding:
    source = Source(load, repeat, data.mark)

    def asking(record: Record) -> tuple[dict[str, Any], Expected]:
        planned = source.planned(record.index)
        return planned.body, planned.expected

    options = harness.options
    return truth.check(options.host, options.api_key, data.records, load.truth, asking)


def window(load: scenario.Load, data: RunData) -> tuple[float, float]:
    """Seconds between which a run counts: after the warm-up, before its end or what stopped it."""
    end = load.duration_seconds
    if data.stop_reason is not None and data.records:
        end = min(end, max(record.done for record in data.records))
    return (load.warm_up_seconds if load.warm_up_seconds < end else 0.0), max(end, 1e-3)


def judged(load: scenario.Load, repeat: int, data: RunData, floor: Floor | None) -> dict[str, Any]:
    """The document of one run."""
    begin, end = window(load, data)
    records = sorted(data.records, key=lambda record: record.intended)

    def figures(group: Sequence[Record]) -> dict[str, Any]:
        found = measure.figures(group, begin, end, load.objective, load.prices)
        return found | {"floor": _floor(group, begin, end, floor)}

    endpoints = measure.grouped(records, lambda record: record.endpoint)
    everything = figures(records)
    generator = measure.generator_figures(records, data.lateness, everything["latency_seconds"].get("p50"))
    steadiness = _steadiness(load, records)
    return {
        "repeat": repeat,
        "mark": data.mark,
        "started_at": data.started_at,
        "window_seconds": [begin, end],
        "all": everything,
        "endpoints": {name: figures(group) for name, group in endpoints.items()},
        "kinds": {name: figures(group) for name, group in measure.grouped(records, lambda each: each.kind).items()},
        "generator": generator,
        "steady": steadiness and asdict(steadiness),
        "resources": resources(data.samples),
        "truth": None,
        "failures": failures(load, data, everything),
        "invalid": [] if generator["valid"] else [_late(generator)],
        "doubts": _doubts(load, steadiness, everything["answered"]),
        "curves": {name: curve(group, begin, end) for name, group in endpoints.items()},
        "timeline": timeline(records, list(endpoints), end),
    }


def _late(generator: dict[str, Any]) -> str:
    worst = max(generator["lag_p99_seconds"], generator["heartbeat_p99_seconds"])
    limit = generator["limit_seconds"]
    return f"the load generator was late: {worst * 1000:.1f} ms at p99, {limit * 1000:.1f} ms is allowed"


def failures(load: scenario.Load, data: RunData, everything: dict[str, Any]) -> list[str]:
    """What went wrong in a run, a line each."""
    lines = [data.stop_reason] if data.stop_reason else []
    requests = everything["requests"]
    if not requests:
        return [*lines, "no request was due after the warm-up"]
    if not everything["answered"] and not everything["refused"]:
        lines.append("no request was answered")
    expected = isinstance(load, scenario.Overload)
    wrong = everything["failed"] + (0 if expected else everything["refused"])
    if wrong > load.allowed_error_share * requests:
        kinds = dict(everything["errors"])
        if everything["refused"] and not expected:
            kinds["refused with Retry-After"] = everything["refused"]
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(f"{wrong} of {requests} requests failed: {shown}")
    if isinstance(load, scenario.Soak):
        lines += _growth(data.samples, load.allowed_growth_share)
    return lines


def _growth(samples: Sequence[Sample], allowed: float) -> list[str]:
    seen = [sample.server_rss_bytes for sample in samples if sample.server_rss_bytes]
    part = len(seen) // _SOAK_PARTS
    if not part:
        return []
    first, last = float(np.mean(seen[:part])), float(np.mean(seen[-part:]))
    grown = last / first - 1
    return [f"the server's memory grew by {grown:.0%}, {allowed:.0%} is allowed"] if grown > allowed else []


def _floor(records: Sequence[Record], begin: float, end: float, floor: Floor | None) -> dict[str, float]:
    came = [record for record in records if record.ok and begin <= record.done < end]
    images = sum(record.num_images for record in came)
    if floor is None or not images:
        return {}
    operations = sum(_operations(record, floor.architecture) for record in came) / images
    latency = measure.quantile([record.latency for record in came], 0.5)
    seconds = operations / floor.matrix_rate
    found = {
        "operations_per_image": operations,
        "seconds_per_image": seconds,
        "share": share_of_floor(operations, floor.matrix_rate, images / (end - begin)),
    }
    each = images / len(came)
    return found | ({"latency_share": seconds * each / latency} if latency else {})


def _operations(record: Record, architecture: Architecture) -> float:
    return record.num_images * architecture.picture(record.endpoint, record.width, record.height, record.steps)


def _steadiness(load: scenario.Load, records: Sequence[Record]) -> steady.Steadiness | None:
    """Only where the load does not change over time, so that a steady state can be expected."""
    changing = (scenario.Step, scenario.Spike, scenario.Ramp, scenario.Trace)
    if isinstance(load, scenario.Overload):
        return None
    if not isinstance(load, scenario.ClosedLoop) and isinstance(load.arrivals, changing):
        return None
    answered = [record for record in records if record.ok]
    intended = np.array([record.intended for record in answered])
    return steady.steadiness(intended, np.array([record.latency for record in answered]))


def _doubts(load: scenario.Load, found: steady.Steadiness | None, answered: int) -> list[str]:
    lines = []
    if found is not None and found.told:
        if found.drifting:
            lines.append("latency rose over the whole run: the queue grows, and longer runs would show more")
        elif found.settled_at is None:
            lines.append("no steady state was found; the run may be too short")
        elif found.settled_at > load.warm_up_seconds + 0.05 * load.duration_seconds:
            lines.append(
                f"steady only from {found.settled_at:.1f} s on, after the warm-up of {load.warm_up_seconds:g} s"
            )
    if answered < 100:
        lines.append(f"{answered} {'answer is' if answered == 1 else 'answers are'} too few for p99")
    return lines


def resources(samples: Sequence[Sample]) -> dict[str, Any]:
    """Mean and greatest of what was seen of the machine, and the series."""
    found: dict[str, Any] = {}
    for name in ("server_rss_bytes", "gpu_utilisation", "gpu_memory_bytes", "gpu_watts"):
        series = [(sample.at, getattr(sample, name)) for sample in samples if getattr(sample, name) is not None]
        if series:
            values = [value for _, value in series]
            thinned = series[:: max(1, len(series) // 300)]
            found[name] = {"mean": float(np.mean(values)), "max": float(max(values)), "series": thinned}
    return found


def curve(records: Sequence[Record], begin: float, end: float) -> list[list[float]]:
    """Latency by the number of nines: pairs of share and seconds, denser towards the tail."""
    values = np.sort([record.latency for record in records if record.ok and begin <= record.intended < end])
    if not len(values):
        return []
    nines = np.linspace(0, np.log10(max(len(values), 10)), _CURVE)
    shares = 1 - 10.0**-nines
    places = np.minimum(np.ceil(shares * len(values)).astype(int), len(values)) - 1
    return [[float(share), float(values[max(place, 0)])] for share, place in zip(shares, places, strict=True)]


def timeline(records: Sequence[Record], endpoints: list[str], end: float) -> dict[str, Any]:
    """Requests as points, thinned, and counts over equal parts of the run."""
    thinned = records[:: max(1, len(records) // _POINTS)]
    points = [
        [round(each.intended, 4), round(each.latency, 5), endpoints.index(each.endpoint), int(each.ok)]
        for each in thinned
    ]
    # Parts of about ten requests, or a count would be mostly chance.
    parts = min(60, max(6, len(records) // 10))
    edges = np.linspace(0, max(end, 1e-3), parts + 1)
    due, _ = np.histogram([record.intended for record in records], edges)
    came, _ = np.histogram([record.done for record in records if record.ok], edges)
    failed, _ = np.histogram([record.intended for record in records if not record.ok], edges)
    width = float(edges[1] - edges[0])
    return {
        "endpoints": endpoints,
        "points": points,
        "part_seconds": width,
        "due_per_second": (due / width).round(4).tolist(),
        "answered_per_second": (came / width).round(4).tolist(),
        "failed_per_second": (failed / width).round(4).tolist(),
    }


def exit_code(document: dict[str, Any]) -> int:
    """Of a scenario's document: failed before invalid."""
    if any(each["failures"] for each in document["repeats"]):
        return EXIT_FAILED
    return EXIT_INVALID if any(each["invalid"] for each in document["repeats"]) else EXIT_OK


def new_mark() -> str:
    """Text that makes the prompts of a run its own."""
    return secrets.token_hex(4)
