"""Draws the dashboard from a Prometheus: `python -m deploy.grafana.picture http://localhost:9090 dashboard.png`.

For a look where there is no Grafana: the committed panels at their places, each query's answer as lines, numbers for a
stat. Not what Grafana shows to the pixel, but its queries, its legends and its units.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import httpx

from deploy.grafana.dashboard import PATH

_POINTS = 120
_ROW_HEIGHT_INCHES = 0.32
_UNITS = {"s": "s", "reqps": "req/s", "ops": "ops/s", "percentunit": "share", "bytes": "bytes", "short": ""}
_FORMATS = {"percentunit": "{:.1%}", "s": "{:.2f} s"}

Series = dict[str, list[tuple[float, float]]]


def ask(http: httpx.Client, panel: dict[str, Any], start: float, end: float) -> Series:
    """Each series of a panel by its legend, points in seconds before the end."""
    window = f"{max(15, round((end - start) / 8))}s"
    found: Series = {}
    for target in panel["targets"]:
        query = target["expr"].replace("$job", ".+").replace("$instance", ".+").replace("$__rate_interval", window)
        params = {"query": query, "start": str(start), "end": str(end), "step": str((end - start) / _POINTS)}
        for one in http.get("/api/v1/query_range", params=params).raise_for_status().json()["data"]["result"]:
            labels: dict[str, str] = one["metric"]
            legend = target["legendFormat"]
            for name, value in labels.items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            points = [(float(at) - end, float(value)) for at, value in one["values"]]
            found[legend] = [point for point in points if math.isfinite(point[1])]
    return {legend: points for legend, points in found.items() if points}


def draw(http: httpx.Client, path: Path, seconds: float) -> int:
    """Write the picture of the last seconds; the number of series in it."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    model = json.loads(PATH.read_text(encoding="utf-8"))
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in model["panels"])
    figure = plt.figure(figsize=(19, rows * _ROW_HEIGHT_INCHES), facecolor="white")
    end = time.time()
    shown = 0
    for panel in model["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] / 24 + 0.02, 1 - (place["y"] + 0.9) / rows
        if panel["type"] == "row":
            figure.text(left - 0.012, top, panel["title"], fontsize=13, weight="bold", va="center")
            continue
        height = (place["h"] - 2.1) / rows
        axes = figure.add_axes((left, top - height, place["w"] / 24 - 0.035, height))
        axes.set_title(panel["title"], fontsize=9, loc="left")
        series = ask(http, panel, end - seconds, end)
        shown += len(series)
        _fill(axes, panel, series)
    figure.savefig(path, dpi=75)
    return shown


def _fill(axes: Any, panel: dict[str, Any], series: Series) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "stat" or not series:
        shown = _FORMATS.get(unit, "{:.3g}").format
        lines = [f"{legend}  {shown(points[-1][1])}" for legend, points in series.items()] or ["no data"]
        axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=15 if series else 10)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for legend, points in series.items():
        axes.plot(*zip(*points, strict=True), label=legend, linewidth=1.2)
    axes.set_ylim(bottom=0)
    if unit == "bytes":
        from matplotlib.ticker import EngFormatter

        axes.yaxis.set_major_formatter(EngFormatter())
    axes.tick_params(labelsize=7)
    axes.set_ylabel(_UNITS.get(unit, unit), fontsize=7)
    axes.legend(fontsize=6, loc="upper left", ncols=2 if len(series) > 6 else 1, framealpha=0.6)


def main() -> None:
    """Draw the last minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("path", type=Path, help="of the PNG file")
    parser.add_argument("--seconds", type=float, default=180, help="how far back")
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=30) as http:
        shown = draw(http, arguments.path, arguments.seconds)
    print(f"{shown} series in {arguments.path}")


if __name__ == "__main__":
    main()
