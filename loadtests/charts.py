"""Plots as SVG text: no library, no script, colours from the page's style sheet so that both themes work.

Each function gives one `<svg>` with a title for those who do not see it. Marks carry `<title>` elements,
which browsers show as tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 40
_COLOURS = 9
# One bar alone would be as wide as the plot.
_LEAST_BARS = 6

Scale = Callable[[float], float]


def shown_seconds(value: float | None) -> str:
    """A duration with three digits that count."""
    if value is None:
        return "–"
    return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.3g} s" if value < 999.5 else f"{value:.0f} s"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high."""
    span = max(high - low, 1e-12)
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [first_ * step for first_ in range(first, math.floor(high / step + 1e-9) + 1)]


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


class _Plot:
    """An area with axes, to be filled with marks."""

    def __init__(self, title: str, high_x: float, high_y: float, height: int = _HEIGHT) -> None:
        self.height = height
        self.x = _linear(0, high_x, _LEFT, _WIDTH - _RIGHT)
        self.y = _linear(0, high_y, height - _BOTTOM, _TOP)
        self._parts = [f"<title>{escape(title)}</title>"]

    def add(self, mark: str) -> None:
        self._parts.append(mark)

    def text(self, x: float, y: float, words: str, anchor: str = "middle", style: str = "label") -> None:
        self.add(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def axis_x(self, values: Sequence[float], label: str, show: Callable[[float], str] = "{:g}".format) -> None:
        bottom = self.height - _BOTTOM
        self.add(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        for value in values:
            self.text(self.x(value), bottom + 15, show(value))
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, self.height - 6, label)

    def axis_y(self, values: Sequence[float], show: Callable[[float], str] = "{:g}".format) -> None:
        for value in values:
            place = self.y(value)
            self.add(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
            self.text(_LEFT - 6, place + 3.5, show(value), "end")

    def line(self, points: Sequence[tuple[float, float]], colour: int, extra: str = "") -> None:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.add(f'<polyline class="line c{colour % _COLOURS} {extra}" points="{path}"/>')

    def dot(self, x: float, y: float, colour: int, tip: str, radius: float = 4, extra: str = "") -> None:
        self.add(
            f'<circle class="dot c{colour % _COLOURS} {extra}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def shade(self, first: float, last: float) -> None:
        """Shade the plot between two values of x."""
        left, width = self.x(first), self.x(last) - self.x(first)
        height = self.height - _TOP - _BOTTOM
        self.add(f'<rect class="warm-up" x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}"/>')

    def level(self, y: float, words: str, colour: int | None = None) -> None:
        """A dashed horizontal line with words on it."""
        place = self.y(y)
        style = "level" if colour is None else f"level c{colour % _COLOURS}"
        self.add(f'<line class="{style}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        self.text(_LEFT + 4, place - 4, words, "start", "note")

    def svg(self) -> str:
        return f'<svg viewBox="0 0 {_WIDTH} {self.height}" role="img">{"".join(self._parts)}</svg>'


def percentiles(curves: dict[str, list[list[float]]], limits: dict[str, float]) -> str:
    """Latency over the share of requests that were at least as quick, the tail stretched (one nine, two nines...)."""
    points = [pair for each in curves.values() for pair in each]
    if not points:
        return ""

    def nines(share: float) -> float:
        return -math.log10(max(1 - share, 1e-7))

    most = max(nines(share) for share, _ in points)
    highest = max(seconds for _, seconds in points)
    reached = {name: limit for name, limit in limits.items() if name in curves and limit < 3 * highest}
    high = max([highest, *reached.values()]) * 1.08
    plot = _Plot("Latency by percentile", most, high)
    plot.axis_y(ticks(0, high), shown_seconds)
    marks = [share for share in (0, 0.5, 0.9, 0.99, 0.999, 0.9999) if nines(share) <= most + 1e-9]
    plot.axis_x([nines(share) for share in marks], "percentile", lambda value: f"{100 * (1 - 10**-value):g}")
    for index, pairs in enumerate(curves.values()):
        plot.line([(nines(share), seconds) for share, seconds in pairs], index)
    # Above the lines, or they would cross out the words.
    for index, name in enumerate(curves):
        if name in reached:
            plot.level(reached[name], f"objective of {name}", index)
    return plot.svg()


def timeline(found: dict[str, Any], warm_up: float) -> str:
    """Each request as a point at its intended start; failures on the upper edge; the warm-up shaded."""
    points = found["points"]
    if not points:
        return ""
    end = found["part_seconds"] * len(found["due_per_second"])
    high = max([latency for _, latency, _, ok in points if ok] or [1e-3]) * 1.1
    plot = _Plot("Latency of each request over time", end, high)
    if warm_up:
        plot.shade(0, warm_up)
        plot.text(plot.x(0) + 4, _TOP + 12, "warm-up", "start", "note")
    plot.axis_y(ticks(0, high), shown_seconds)
    plot.axis_x(ticks(0, end), "seconds from the start, when the request was due")
    radius = 2 if len(points) > 300 else 3.5
    for at, latency, endpoint, ok in points:
        if ok:
            place = f'cx="{plot.x(at):.1f}" cy="{plot.y(latency):.1f}" r="{radius}"'
            plot.add(f'<circle class="point c{endpoint}" {place}/>')
        else:
            x, y = plot.x(at), _TOP + 3
            plot.add(f'<path class="failure" d="M{x - 3:.1f} {y - 3}l6 6m0-6l-6 6"><title>failed</title></path>')
    return plot.svg()


def rates(found: dict[str, Any]) -> str:
    """Requests that were due and answers that came, a second."""
    width = found["part_seconds"]
    series = {"due": found["due_per_second"], "answered": found["answered_per_second"]}
    if any(found["failed_per_second"]):
        series["failed"] = found["failed_per_second"]
    high = max(max(values) for values in series.values()) * 1.1 or 1.0
    plot = _Plot("Requests due and answered a second", width * len(series["due"]), high, 200)
    plot.axis_y(ticks(0, high, 4))
    plot.axis_x(ticks(0, width * len(series["due"])), "seconds from the start")
    for index, (name, values) in enumerate(series.items()):
        style = "failed" if name == "failed" else "thin" if name == "due" else ""
        plot.line([((place + 0.5) * width, value) for place, value in enumerate(values)], index + 2, style)
    return plot.svg()


def stages(rows: dict[str, dict[str, float]]) -> tuple[str, dict[str, str]]:
    """Mean seconds of each stage, stacked; and the style of each stage. What is no stage of the server is grey."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not names:
        return "", {}
    ours = [name for name in names if not name.startswith("(")]
    styles = {name: f"c{(index + 2) % (_COLOURS - 1)}" for index, name in enumerate(ours)}
    styles |= {
        name: f"c{_COLOURS - 1} hollow{index}"
        for index, name in enumerate(each for each in names if each not in styles)
    }
    longest = max(sum(row.values()) for row in rows.values())
    height = _TOP + 46 * len(rows) + _BOTTOM
    plot = _Plot("Mean time in each stage", longest * 1.12, 1, height)
    plot.axis_x(ticks(0, longest * 1.12), "mean seconds of a request", shown_seconds)
    for index, (row, values) in enumerate(rows.items()):
        top, reached = _TOP + 46 * index + 8, 0.0
        plot.text(_LEFT - 6, top + 18, row, "end")
        for name, seconds in values.items():
            left, right = plot.x(reached), plot.x(reached + seconds)
            place = f'x="{left:.1f}" y="{top}" width="{max(right - left - 1, 0):.1f}" height="28"'
            tip = f"<title>{escape(name)}: {shown_seconds(seconds)}</title>"
            plot.add(f'<rect class="bar {styles[name]}" {place}>{tip}</rect>')
            reached += seconds
        plot.text(plot.x(reached) + 5, top + 18, shown_seconds(reached), "start", "note")
    return plot.svg(), styles


def knee(document: dict[str, Any], objective: float | None) -> str:
    """p50 and p99 over throughput, with the knee and the capacity."""
    points = [point for point in document["points"] if point["throughput"] and point["p50"]]
    if not points:
        return ""
    points.sort(key=lambda point: point["rate"])
    offered = max(document["capacity"], *(point["rate"] for point in points)) * 1.08
    high = max(point["p99"] or point["p50"] for point in points)
    if objective and objective < 2 * high:
        high = max(high, objective)
    within = [point["p99"] for point in points if point["p99"] and objective and point["p99"] < 2.5 * objective]
    cap = min(high, max([objective * 2.5, *within])) if objective else high
    plot = _Plot("Latency over the offered rate", offered, cap * 1.08)
    plot.axis_y(ticks(0, cap * 1.08), shown_seconds)
    plot.axis_x(ticks(0, offered), "offered requests a second")
    for index, name in enumerate(("p50", "p99")):
        pairs = [(point["rate"], min(point[name], cap * 1.08)) for point in points if point[name]]
        plot.line(pairs, index)
        for point in points:
            if point[name] and point[name] <= cap * 1.08:
                rates_shown = f"{point['rate']:.3g}/s offered, {point['throughput']:.3g}/s answered"
                tip = f"{rates_shown}, {name} {shown_seconds(point[name])}"
                plot.dot(point["rate"], point[name], index, tip)
    if objective and objective <= cap * 1.08:
        plot.level(objective, "objective")
    for value, words in ((document["capacity"], "capacity"), ((document["knee"] or {}).get("rate"), "knee")):
        if value:
            x = plot.x(value)
            plot.add(f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            plot.text(x - 4, _TOP + (8 if words == "capacity" else 38), f"{words} {value:.3g}/s", "end", "note")
    return plot.svg()


def bars(counts: dict[str, int], title: str, label: str) -> str:
    """Counts by a number, such as batch sizes."""
    if not counts:
        return ""
    high = max(counts.values()) * 1.1
    plot = _Plot(title, max(len(counts), _LEAST_BARS), high, 200)
    plot.axis_y([tick for tick in ticks(0, high, 4) if tick == int(tick)], "{:,.0f}".format)
    plot.axis_x([], label)
    width = plot.x(1) - plot.x(0)
    for index, (name, count) in enumerate(counts.items()):
        top = plot.y(count)
        plot.add(
            f'<rect class="bar c0" x="{plot.x(index) + width * 0.15:.1f}" y="{top:.1f}" width="{width * 0.7:.1f}" '
            f'height="{200 - _BOTTOM - top:.1f}"><title>{escape(name)}: {count}</title></rect>'
        )
        plot.text(plot.x(index + 0.5), 200 - _BOTTOM + 15, name)
    return plot.svg()


def series(pairs: Sequence[Sequence[float]], label: str, unit: float, show: Callable[[float], str]) -> str:
    """One value over time, in a unit, so that its ticks are round."""
    if len(pairs) < 2:
        return ""
    pairs = [(at, value / unit) for at, value in pairs]
    high = max(value for _, value in pairs) * 1.15 or 1.0
    plot = _Plot(label, pairs[-1][0], high, 180)
    plot.axis_y(ticks(0, high, 3), show)
    plot.axis_x(ticks(0, pairs[-1][0]), "seconds from the start")
    plot.line([(at, value) for at, value in pairs], 0)
    return plot.svg()


def ratios(rows: Sequence[dict[str, Any]], margin: float) -> str:
    """Ratios B / A with their intervals around one."""
    if not rows:
        return ""
    reach = max([margin, *(abs(row[end] - 1) for row in rows for end in ("low", "high", "ratio"))]) * 1.15
    # Wider intervals run out of the plot: they say nothing, and would leave no room for those that do.
    reach = min(reach, 1.0)
    height = _TOP + 34 * len(rows) + _BOTTOM
    plot = _Plot("Ratio B / A", 1, 1, height)
    inside = _linear(1 - reach, 1 + reach, _LEFT + 120, _WIDTH - _RIGHT)
    plot.x = lambda value: inside(min(max(value, 1 - reach), 1 + reach))
    plot.axis_x(ticks(1 - reach, 1 + reach), "ratio B / A and its 95 % interval; the shaded part is within the margin")
    plot.shade(1 - margin, 1 + margin)
    plot.add(f'<line class="axis" x1="{plot.x(1):.1f}" x2="{plot.x(1):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    for index, row in enumerate(rows):
        y = _TOP + 34 * index + 18
        plot.text(_LEFT + 114, y + 4, row["name"], "end")
        plot.add(
            f'<line class="line c0" x1="{plot.x(row["low"]):.1f}" x2="{plot.x(row["high"]):.1f}" y1="{y}" y2="{y}"/>'
        )
        tip = escape(f"{row['name']}: {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        plot.add(f'<circle class="dot c0" cx="{plot.x(row["ratio"]):.1f}" cy="{y}" r="5"><title>{tip}</title></circle>')
    return plot.svg()
