"""The committed dashboard is what the metric definitions give, and Grafana and Prometheus can read it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import dashboard
from sana_service.metrics import catalogue
from tests.deploy.tools import run, tool


def committed() -> dict[str, Any]:
    model: dict[str, Any] = json.loads(dashboard.PATH.read_text(encoding="utf-8"))
    return model


def queries() -> list[str]:
    return [target["expr"] for panel in committed()["panels"] for target in panel.get("targets", ())]


def test_the_committed_file_is_current():
    assert dashboard.PATH.read_text(encoding="utf-8") == dashboard.render(), "run python -m deploy.grafana.dashboard"


def test_every_queried_metric_exists_and_every_metric_is_queried():
    known = {one.name for one in catalogue()}
    queried = {name for query in queries() for name in dashboard.metric_names(query)}
    assert queried <= known
    assert known - queried == dashboard.LEFT_OUT


def test_every_query_is_of_the_chosen_replicas_alone():
    for query in queries():
        assert query.count(dashboard.SELECTOR) == query.count("sana_") > 0


def test_an_unknown_metric_stops_the_generation():
    with pytest.raises(ValueError, match="no metric sana_sales_total"):
        dashboard.selected("rate(sana_sales_total[5m])")


def test_the_selector_goes_before_what_a_query_selects_itself():
    selected = dashboard.selected('rate(sana_requests_total{outcome="failed"}[5m]) / sana_running_jobs')
    assert selected == (
        'rate(sana_requests_total{job=~"$job",instance=~"$instance",outcome="failed"}[5m]) '
        '/ sana_running_jobs{job=~"$job",instance=~"$instance"}'
    )


def test_panels_have_ids_of_their_own_and_lie_beside_each_other():
    taken: set[tuple[int, int]] = set()
    panels = committed()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_a_panel_says_what_its_metrics_are():
    panel = next(one for one in committed()["panels"] if one["title"] == "Oldest that waits")
    assert panel["description"] == "`sana_queue_oldest_seconds`: How long the request that came first has waited."


def unread(model: Any, read: Any, path: str = "") -> Iterator[str]:
    """What of a model is not in what was read of it."""
    if isinstance(model, dict):
        for name, value in model.items():
            yield from unread(value, read[name], f"{path}.{name}") if name in read else [f"{path}.{name}"]
    elif isinstance(model, list):
        for one, other in zip(model, read, strict=True):
            yield from unread(one, other, path)
    elif model != read:
        yield path


def read_by_grafana(model: dict[str, Any]) -> Any:
    """The model after Grafana's own types have read it."""
    sdk = "grafana_foundation_sdk"
    pytest.importorskip(sdk, reason="make deploy-tools")
    dashboards, encoder, plugins = (
        importlib.import_module(f"{sdk}.{name}") for name in ("models.dashboard", "cog.encoder", "cog.plugins")
    )
    plugins.register_default_plugins()
    return json.loads(encoder.JSONEncoder().encode(dashboards.Dashboard.from_json(model)))


def test_grafanas_own_types_read_all_of_it():
    model = committed()
    # Both are Grafana's, but of plugins that the types leave open.
    assert set(unread(model, read_by_grafana(model))) == {
        ".templating.list.definition",
        ".annotations.list.titleFormat",
    }
    model["panels"][1]["fieldConfg"] = model["panels"][1].pop("fieldConfig")
    assert ".panels.fieldConfg" in set(unread(model, read_by_grafana(model)))


def test_promtool_parses_every_query(tmp_path: Path):
    rules = [
        {"record": f"panel:query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = run([tool("promtool"), "check", "rules", file])
    assert checked.returncode == 0, checked.stderr
    assert f"SUCCESS: {len(rules)} rules found" in checked.stdout
