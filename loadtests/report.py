"""One document, three forms: JSON with everything, Markdown for READMEs, and one HTML file with plots.

The HTML file asks for nothing outside itself. The key is taken out of every text before anything is
written, wherever it may have come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from loadtests import charts
from loadtests.charts import shown_seconds
from loadtests.provenance import HIDDEN

SCHEMA = 1
_TEMPLATE = "report.html.j2"
_PLUS_MINUS = " ± "
# Their values are words of the harness, even where the key is such a word.
_OWN_WORDS = {"type", "kind", "process", "endpoint", "verdict"}


def write(document: dict[str, Any], folder: Path, api_key: str = "") -> None:
    """Write result.json, report.md and report.html into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = hidden(document, api_key)
    (folder / "result.json").write_text(json.dumps(clean, indent=1, allow_nan=False, default=str), encoding="utf-8")
    (folder / "report.md").write_text(markdown(clean), encoding="utf-8")
    (folder / "report.html").write_text(html(clean), encoding="utf-8")


def hidden(value: Any, api_key: str) -> Any:
    """The same value with the key taken out of each text, and what JSON cannot hold as None."""
    if isinstance(value, dict):
        return {name: each if name in _OWN_WORDS else hidden(each, api_key) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(each, api_key) for each in value]
    if isinstance(value, str):
        return value.replace(api_key, HIDDEN) if api_key else value
    return value if not isinstance(value, float) or math.isfinite(value) else None


def verdict(document: dict[str, Any]) -> str:
    """One word for the whole document."""
    if any(failures(part) for part in document["parts"]):
        return "failed"
    if any(invalid(part) for part in document["parts"]):
        return "invalid"
    return "slower" if any(part.get("worse") for part in document["parts"]) else "good"


def failures(part: dict[str, Any]) -> list[str]:
    return [*part.get("failures", []), *(line for each in part.get("repeats", []) for line in each["failures"])]


def invalid(part: dict[str, Any]) -> list[str]:
    return [*part.get("invalid", []), *(line for each in part.get("repeats", []) for line in each["invalid"])]


def doubts(part: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(line for each in part.get("repeats", []) for line in each["doubts"]))


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that count, without an exponent."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} %" if value < 0.01 else f"{value:.1%}".replace("%", " %")


def mean_of(part: dict[str, Any], row: str, *path: str) -> float | None:
    """A figure of an endpoint (or "all"), mean over the repeats that have it."""
    found = []
    for each in part["repeats"]:
        value: Any = each["all"] if row == "all" else each["endpoints"].get(row, {})
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            found.append(float(value))
    return sum(found) / len(found) if found else None


def spread(part: dict[str, Any], row: str, *path: str) -> float | None:
    """Half of the 95 % interval over repeats, None without repeats."""
    value: Any = part["across"]["all"] if row == "all" else part["across"]["endpoints"].get(row, {})
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return (value["high"] - value["low"]) / 2 if isinstance(value, dict) and "high" in value else None


def rows_of(part: dict[str, Any]) -> list[str]:
    """Endpoints of a scenario, then "all" where there are several."""
    names = list(dict.fromkeys(name for each in part["repeats"] for name in each["endpoints"]))
    return [*names, "all"] if len(names) > 1 else names


def cells(part: dict[str, Any], row: str) -> list[str]:
    """One row of a scenario's table."""

    def seconds(name: str) -> str:
        value, half = mean_of(part, row, "latency_seconds", name), spread(part, row, "latency_seconds", name)
        known = value is not None and half is not None
        return shown_seconds(value) + (f"{_PLUS_MINUS}{shown_seconds(half)}" if known else "")

    rate, half = mean_of(part, row, "images_per_second"), spread(part, row, "images_per_second")
    return [
        row,
        number(mean_of(part, row, "requests"), 6),
        f"{number(mean_of(part, row, 'failed'), 6)} / {number(mean_of(part, row, 'refused'), 6)}",
        *(seconds(name) for name in ("p50", "p90", "p95", "p99", "p999")),
        number(rate) + (f"{_PLUS_MINUS}{number(half)}" if half is not None else ""),
        number(mean_of(part, row, "megapixels_per_second")),
        share(mean_of(part, row, "good_share")),
        share(mean_of(part, row, "floor", "share")),
    ]


HEADINGS = (
    *("endpoint", "requests", "failed / refused", "p50", "p90", "p95", "p99", "p99.9"),
    *("images/s", "megapixels/s", "within objective", "share of floor"),
)
CURVE_HEADINGS = ("offered/s", "answered/s", "p50", "p99, or greatest of fewer than 100")
RATIO_HEADINGS = ("B / A", "A", "B", "ratio", "95 % interval", "")


def markdown(document: dict[str, Any]) -> str:
    """Tables for a README."""
    made = document["provenance"]
    lines = [f"# {document['title']}", "", f"**{verdict(document)}**. {origin(made)}", ""]
    for part in document["parts"]:
        lines += [f"## {part['name']}", ""]
        if part["type"] == "scenario":
            lines += [objective(part), "", *_head(HEADINGS)]
            lines += [f"| {' | '.join(cells(part, row))} |" for row in rows_of(part)]
        elif part["type"] == "capacity":
            lines += [f"Largest rate that keeps the objective: **{number(part['rate'])}/s**"]
        elif part["type"] == "curve":
            lines += _head(CURVE_HEADINGS)
            lines += [f"| {' | '.join(curve_cells(point))} |" for point in part["points"]]
        elif part["type"] == "comparison":
            lines += [f"A is {part['a']}, B is {part['b']}.", "", *_head(RATIO_HEADINGS)]
            lines += [f"| {' | '.join(ratio_cells(row))} |" for row in part["rows"]]
        elif part["type"] == "cold_start":
            lines += _head(("start", "alive", "ready", "first picture"))
            lines += [f"| {' | '.join(start_cells(index, each))} |" for index, each in enumerate(part["starts"])]
        notes = [*failures(part), *invalid(part), *doubts(part)]
        lines += ["", *(f"* {note}" for note in notes), *([""] if notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def _head(headings: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(headings)} |", f"| {' | '.join('---' for _ in headings)} |"]


def objective(part: dict[str, Any]) -> str:
    """What "within objective" and "goodput" are counted against, in a sentence; empty where they are not."""
    wanted = part.get("scenario") or {}
    if part["type"] not in {"scenario", "capacity", "curve"} or "objective" not in wanted:
        return ""
    endpoints = dict.fromkeys(each["endpoint"] for each in wanted["requests"])
    limits = [f"{name} within {shown_seconds(wanted['objective'][f'{name}_seconds'])}" for name in endpoints]
    return f"Objective: {100 * wanted['objective']['share']:g} % of {', '.join(limits)}."


def origin(made: dict[str, Any]) -> str:
    """Commit, time, machine and server in a sentence."""
    machine = made["machine"]
    gpu = f", {', '.join(made['gpu']['gpus'])}, driver {made['gpu']['driver']}" if made.get("gpu") else ""
    commit = (made["commit"] or "unknown")[:12] + ("+changes" if (made["commit"] or "").endswith("+changes") else "")
    return f"Commit {commit}, {made['made_at']}, {machine['cores']} cores of {machine['processor']}{gpu}."


def curve_cells(point: dict[str, Any]) -> list[str]:
    return [
        *(number(point["rate"]), number(point["throughput"])),
        *(shown_seconds(point["p50"]), shown_seconds(point["p99"])),
    ]


def ratio_cells(row: dict[str, Any]) -> list[str]:
    ends = f"{row['low']:.3f} to {row['high']:.3f}" if row["high"] is not None else "one block gives none"
    show = shown_seconds if row["measure"].startswith("latency_seconds") else number
    return [row["name"], *(show(geometric_mean(row[arm])) for arm in "ab"), f"{row['ratio']:.3f}", ends, row["verdict"]]


def start_cells(index: int, start: dict[str, Any]) -> list[str]:
    return [str(index + 1), *(shown_seconds(start[name]) for name in ("alive", "ready", "first_picture"))]


def tiles(document: dict[str, Any]) -> list[dict[str, str]]:
    """The few figures at the top of the page."""
    found: list[dict[str, str]] = []
    for part in document["parts"]:
        if part["type"] == "scenario" and part["scenario"]["kind"] == "single_stream":
            for row in rows_of(part):
                if row != "all":
                    found.append(_tile(f"{row}, one at a time", shown_seconds(mean_of(part, row, *_P50)), "p50"))
        if part["type"] == "scenario" and part["scenario"]["kind"] == "offline":
            found.append(_tile("as fast as possible", number(mean_of(part, "all", "images_per_second")), "images/s"))
            floor = mean_of(part, "all", "floor", "share")
            if floor is not None:
                found.append(_tile("share of the floor", share(floor), part["floor"]["model"]))
        if part["type"] == "capacity":
            found.append(
                _tile(f"capacity, {part['scenario']['name']}", number(part["rate"]), "requests/s in objective")
            )
        if part["type"] == "comparison" and part["rows"]:
            row = part["rows"][0]
            found.append(_tile(f"{row['name']}, over that of {part['a']}", f"{row['ratio']:.2f}", row["verdict"]))
    if not found and document["parts"] and document["parts"][0]["type"] == "scenario":
        part = document["parts"][0]
        for row in part["repeats"][0]["endpoints"]:
            found.append(_tile(f"{row}, p50", shown_seconds(mean_of(part, row, *_P50)), "from the due time"))
            found.append(_tile(f"{row}, p99", shown_seconds(mean_of(part, row, "latency_seconds", "p99")), ""))
    return found[:8]


_P50 = ("latency_seconds", "p50")


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def plots(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Heading, SVG and legend of each plot of a part; of repeats the last one is drawn."""
    if part["type"] == "curve":
        objective = part["scenario"]["objective"]
        endpoints = {each["endpoint"] for each in part["scenario"]["requests"]}
        limit = objective[f"{endpoints.pop()}_seconds"] if len(endpoints) == 1 else None
        return [_plot("Latency over the offered rate", charts.knee(part, limit), ["p50", "p99"])]
    if part["type"] == "comparison":
        bounded = [row for row in part["rows"] if row["high"] is not None]
        drawn = [_plot("Ratio B / A", charts.ratios(bounded, part["margin"]), [])]
        return drawn if bounded else []
    if part["type"] != "scenario" or not part["repeats"]:
        return []
    last = part["repeats"][-1]
    objective = part["scenario"]["objective"]
    limits = {name: objective[f"{name}_seconds"] for name in last["endpoints"]}
    endpoints_shown = list(last["curves"])
    by_stage, styles = charts.stages({row: each["stage_seconds"] for row, each in last["endpoints"].items()})
    drawn = [
        _plot("Latency by percentile", charts.percentiles(last["curves"], limits), endpoints_shown),
        _plot(
            "Each request over time",
            charts.timeline(last["timeline"], last["window_seconds"][0]),
            last["timeline"]["endpoints"],
        ),
        _plot("Where the time goes", by_stage, styles),
        _plot("Due and answered a second", charts.rates(last["timeline"]), ["due", "answered"], first=2),
        _plot(
            "Answers by batch size", charts.bars(last["all"]["batch_sizes"], "Answers by batch size", "batch size"), []
        ),
    ]
    for name, label, unit, show in (
        ("server_rss_bytes", "Memory of the server", 2**30, lambda value: f"{value:.3g} GiB"),
        ("gpu_utilisation", "GPU utilisation", 1, lambda value: f"{value:.0%}"),
        ("gpu_memory_bytes", "GPU memory", 2**30, lambda value: f"{value:.3g} GiB"),
        ("gpu_watts", "GPU power", 1, lambda value: f"{value:.0f} W"),
    ):
        if name in last["resources"]:
            drawn.append(_plot(label, charts.series(last["resources"][name]["series"], label, unit, show), []))
    return [plot for plot in drawn if plot["svg"]]


def _plot(heading: str, svg: str, legend: list[str] | dict[str, str], first: int = 0) -> dict[str, Any]:
    """A plot with its legend: names, in the order of the colours from the first one on, or with their styles."""
    if isinstance(legend, list):
        legend = {name: f"c{index + first}" for index, name in enumerate(legend)}
    return {"heading": heading, "svg": Markup(svg), "legend": legend}


def html(document: dict[str, Any]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["html", "j2"]), trim_blocks=True
    )
    functions = {
        **{"plots": plots, "rows_of": rows_of, "cells": cells, "failures": failures, "invalid": invalid},
        **{"doubts": doubts, "curve_cells": curve_cells, "ratio_cells": ratio_cells, "start_cells": start_cells},
        **{"number": number, "share": share, "seconds": shown_seconds, "mean_of": mean_of, "objective": objective},
    }
    return environment.get_template(_TEMPLATE).render(
        document=document,
        headings=HEADINGS,
        curve_headings=CURVE_HEADINGS,
        ratio_headings=RATIO_HEADINGS,
        tiles=tiles(document),
        verdict=verdict(document),
        origin=origin(document["provenance"]),
        provenance=json.dumps(document["provenance"], indent=2),
        **functions,
    )
