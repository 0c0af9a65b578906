"""Writes the Grafana dashboard: `python -m deploy.grafana.dashboard`.

Queries are PromQL as one would type it. Here every metric's name gets the dashboard's selector, a name that
`sana_service.metrics` does not know stops the generation, and a panel's description is the metrics' own help. A metric
that is on no panel and not among `LEFT_OUT` is an error too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sana_service.metrics import catalogue

PATH = Path(__file__).with_name("dashboard.json")

LEFT_OUT = {"sana_process_virtual_memory_bytes", "sana_process_max_fds", "sana_process_start_time_seconds"}

SELECTOR = 'job=~"$job",instance=~"$instance"'
_COLUMNS = 24
_SERIES = re.compile(r"\b(sana_[a-z_]+)(\{)?")
_PARTS = re.compile(r"_(bucket|count|sum)$")
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        queries: PromQL without selectors, and the legend of each.
        unit: Grafana's name of it.
        width: columns of 24.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    width: int = 8
    stacked: bool = False


def quantiles(metric: str, by: str) -> tuple[tuple[str, str], ...]:
    """p50, p95 and p99 of a histogram."""
    return tuple(
        (
            f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket[$__rate_interval])))",
            f"p{q * 100:.0f} {{{{{by}}}}}",
        )
        for q in (0.5, 0.95, 0.99)
    )


def rates(metric: str, by: str, legend: str) -> tuple[tuple[str, str], ...]:
    """A counter's events a second."""
    return ((f"sum by ({by}) (rate({metric}[$__rate_interval]))", legend),)


ENDED_WELL = 'sum(rate(sana_requests_total{outcome="completed"}[$__rate_interval]))'
ENDED = 'sum(rate(sana_requests_total{outcome=~"completed|failed|expired"}[$__rate_interval]))'

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        Panel("Ready replicas", (("sum(sana_ready)", "ready"),), kind="stat", width=4),
        Panel("Completed of accepted", ((f"{ENDED_WELL} / {ENDED}", ""),), "percentunit", "stat", 4),
        Panel("Predicted wait", (("max by (model) (sana_predicted_wait_seconds)", "{{model}}"),), "s", "stat", 4),
        Panel(
            "Latency, p95",
            (quantiles("sana_request_seconds", "model")[1],),
            "s",
            "stat",
            4,
        ),
        Panel("Images a second", rates("sana_images_total", "model", "{{model}}"), "short", "stat", 4),
        Panel("Version", (("count by (version, python) (sana_build_info)", "{{version}}"),), "short", "stat", 4),
    ),
    "Traffic": (
        Panel("Requests by outcome", rates("sana_requests_total", "model, outcome", "{{model}} {{outcome}}"), "reqps"),
        Panel(
            "Not completed, by reason",
            rates("sana_uncompleted_requests_total", "reason", "{{reason}}"),
            "reqps",
        ),
        Panel(
            "HTTP responses",
            (("sum by (route, code) (rate(sana_http_responses_total[$__rate_interval])) > 0", "{{route}} {{code}}"),),
            "reqps",
        ),
        Panel("Images", rates("sana_images_total", "model, format", "{{model}} {{format}}"), "short"),
        Panel(
            "Megapixels a second",
            (("sum by (model) (rate(sana_image_pixels_total[$__rate_interval])) / 1e6", "{{model}}"),),
        ),
        Panel("Billable units a second", rates("sana_billable_units_total", "model", "{{model}}")),
    ),
    "Queue": (
        Panel("Predicted wait", (("max by (model) (sana_predicted_wait_seconds)", "{{model}}"),), "s"),
        Panel(
            "Requests that wait",
            (
                ("sum(sana_queue_jobs)", "waiting"),
                ("sum(sana_running_jobs)", "running"),
                ("sum(sana_queue_capacity_jobs)", "capacity"),
            ),
        ),
        Panel(
            "Work that waits, megapixel-steps",
            (
                ("sum(sana_queue_work_megapixel_steps)", "waiting"),
                ("sum(sana_queue_capacity_megapixel_steps)", "capacity"),
            ),
        ),
        Panel("Oldest that waits", (("max(sana_queue_oldest_seconds)", "oldest"),), "s"),
        Panel("Images before the encoder", (("sum(sana_encoder_waiting_images)", "waiting"),)),
    ),
    "Latency": (
        Panel("Requests", quantiles("sana_request_seconds", "model"), "s", width=12),
        Panel(
            "Requests, distribution",
            (("sum by (le) (rate(sana_request_seconds_bucket[$__rate_interval]))", "{{le}}"),),
            "s",
            "heatmap",
            12,
        ),
        Panel(
            "Mean time in each stage",
            (
                (
                    "sum by (stage) (rate(sana_stage_seconds_sum[$__rate_interval])) "
                    "/ sum by (stage) (rate(sana_stage_seconds_count[$__rate_interval]))",
                    "{{stage}}",
                ),
            ),
            "s",
            width=12,
            stacked=True,
        ),
        Panel("Stages, p95", (quantiles("sana_stage_seconds", "stage")[1],), "s", width=12),
    ),
    "Device": (
        Panel(
            "Memory",
            (
                ("sana_device_memory_allocated_bytes", "tensors {{instance}} {{device}}"),
                ("sana_device_memory_reserved_bytes", "process {{instance}} {{device}}"),
                ("sana_device_memory_peak_bytes", "peak {{instance}} {{device}}"),
            ),
            "bytes",
        ),
        Panel(
            "Images denoised together",
            (
                (
                    "sum by (model) (rate(sana_batch_images_sum[$__rate_interval])) "
                    "/ sum by (model) (rate(sana_batch_images_count[$__rate_interval]))",
                    "{{model}}",
                ),
            ),
        ),
        Panel("Steps a second", rates("sana_denoise_steps_total", "model", "{{model}}")),
        Panel(
            "Out of memory", (("sum by (stage) (increase(sana_out_of_memory_total[$__rate_interval]))", "{{stage}}"),)
        ),
        Panel("Devices", (("sum(sana_devices)", "given"), ("sum(sana_devices_lost)", "lost"))),
        Panel("Flagged images", rates("sana_flagged_images_total", "model", "{{model}}")),
    ),
    "Storage and webhooks": (
        Panel("Storage, tried once more", rates("sana_storage_retries_total", "operation", "{{operation}}"), "ops"),
        Panel("Storage, failed", rates("sana_storage_errors_total", "operation", "{{operation}}"), "ops"),
        Panel("Webhooks", rates("sana_webhook_attempts_total", "outcome", "{{outcome}}"), "ops"),
    ),
    "Process": (
        Panel("Resident memory", (("sana_process_resident_memory_bytes", "{{instance}}"),), "bytes", width=6),
        Panel("Open files", (("sana_process_open_fds", "{{instance}}"),), width=6),
        Panel(
            "CPU cores in use", (("rate(sana_process_cpu_seconds_total[$__rate_interval])", "{{instance}}"),), width=6
        ),
        Panel("Time to start", (("sana_start_seconds", "{{instance}}"),), "s", width=6),
    ),
}


def metric_names(query: str) -> set[str]:
    """Names in a query as the catalogue has them; a histogram's parts are the histogram."""
    known = {one.name for one in catalogue()}
    return {name if name in known else _PARTS.sub("", name) for name, _ in _SERIES.findall(query)}


def selected(query: str) -> str:
    """The query with the dashboard's selector on each metric.

    Raises:
        ValueError: a metric is not the service's.
    """
    unknown = metric_names(query) - {one.name for one in catalogue()}
    if unknown:
        raise ValueError(f"no metric {', '.join(sorted(unknown))}: {query}")
    return _SERIES.sub(lambda found: f"{found[1]}{{{SELECTOR}{',' if found[2] else '}'}", query)


def dashboard() -> dict[str, Any]:
    """The dashboard's JSON model.

    Raises:
        ValueError: a query names a metric that does not exist, or a metric is shown nowhere.
    """
    queried = {
        name for row in ROWS.values() for panel in row for query, _ in panel.queries for name in metric_names(query)
    }
    forgotten = {one.name for one in catalogue()} - queried - LEFT_OUT
    if forgotten:
        raise ValueError(f"on no panel: {', '.join(sorted(forgotten))}")
    return {
        "title": "Sana",
        "uid": "sana-service",
        "tags": ["sana", "bentoml"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _variable("job"), _variable("instance", ',job=~"$job"')]},
        "annotations": {"list": [_restarts()]},
        "panels": _panels(),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(label: str, within: str = "") -> dict[str, Any]:
    query = f"label_values(sana_build_info{{{within.lstrip(',')}}}, {label})"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _restarts() -> dict[str, Any]:
    return {
        "name": "Starts",
        "enable": True,
        "datasource": _DATASOURCE,
        "expr": f"changes(sana_process_start_time_seconds{{{SELECTOR}}}[$__interval]) > 0",
        "titleFormat": "{{instance}} started",
        "iconColor": "blue",
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []})
        panels[-1]["gridPos"] = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        top, left = top + 1, 0
        height = 5 if row[0].kind == "stat" else 8
        for panel in row:
            if left + panel.width > _COLUMNS:
                top, left = top + height, 0
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
            left += panel.width
        top += height
    return panels


def _panel(panel: Panel) -> dict[str, Any]:
    helps = {one.name: one.help for one in catalogue()}
    names = sorted({name for query, _ in panel.queries for name in metric_names(query)})
    shapes: dict[str, dict[str, Any]] = {
        "timeseries": {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "auto", "graphMode": "area"},
        "heatmap": {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Blues"}},
    }
    custom = {"fillOpacity": 20 if panel.stacked else 5, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": "\n\n".join(f"`{name}`: {helps[name]}" for name in names),
        "datasource": _DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({"custom": custom} if panel.kind == "timeseries" else {})},
            "overrides": [],
        },
        "options": shapes[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _DATASOURCE,
                "expr": selected(query),
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def render() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
