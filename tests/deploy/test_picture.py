"""What stands in for Grafana asks the committed queries and shows every series that has numbers."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from deploy.grafana import dashboard
from deploy.grafana.picture import ask, draw

MODEL = json.loads(dashboard.PATH.read_text())


def prometheus(asked: list[str], values: list[list[object]]) -> httpx.Client:
    """One that has the same two series for everything."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["query"])
        metrics = [{"model": "base", "outcome": "completed"}, {"model": "sprint", "outcome": "failed"}]
        result = [{"metric": one, "values": values} for one in metrics]
        return httpx.Response(200, json={"status": "success", "data": {"result": result}})

    return httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(answer))


def test_a_series_has_its_legend_and_its_numbers():
    panel = next(one for one in MODEL["panels"] if one["title"] == "Requests by outcome")
    asked: list[str] = []
    with prometheus(asked, [[990, "1.5"], [995, "NaN"], [1000, "2.5"]]) as http:
        series = ask(http, panel, 940.0, 1000.0)
    assert series == {"base completed": [(-10.0, 1.5), (0.0, 2.5)], "sprint failed": [(-10.0, 1.5), (0.0, 2.5)]}
    assert asked == ['sum by (model, outcome) (rate(sana_requests_total{job=~".+",instance=~".+"}[15s]))']


def test_a_series_without_numbers_is_left_out():
    panel = next(one for one in MODEL["panels"] if one["title"] == "Requests by outcome")
    with prometheus([], [[1000, "NaN"]]) as http:
        assert ask(http, panel, 940.0, 1000.0) == {}


def test_the_picture_has_every_query(tmp_path: Path):
    asked: list[str] = []
    with prometheus(asked, [[990, "1"], [1000, "2"]]) as http:
        assert draw(http, tmp_path / "dashboard.png", 60.0) > len(MODEL["panels"]) / 2
    assert len(asked) == sum(len(panel.get("targets", ())) for panel in MODEL["panels"])
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")
