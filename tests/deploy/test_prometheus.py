"""A real Prometheus scrapes a running service and answers what the dashboard and the alerts ask."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.grafana import dashboard
from tests import services
from tests.deploy.scrape import KEY, prometheus, until
from tests.deploy.tools import DEPLOY, run, tool

# A CPU has none of the device memory that CUDA reports.
WITHOUT_SERIES_ON_A_CPU = {"Memory"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str]) -> Iterator[services.Server]:
    folder = tmp_path_factory.mktemp("scraped")
    keys = folder / "keys"
    keys.write_text(f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    variables = {**pair_variables, "SANA_DEVICES": "cpu", "SANA_API_KEYS_FILE": str(keys)}
    with services.server(folder / "service", variables) as running:
        yield running


def draw(server: services.Server) -> None:
    """A little of everything that the counters count."""
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as http:
        for path, more in (("/generate", {"num_images": 2}), ("/sprint", {"output_format": "png"})):
            body = {"prompt": "a", "image_size": "square", "num_inference_steps": 2, **more}
            assert http.post(path, json=body).status_code == 200
        assert http.post("/generate", json={"prompt": 7}).status_code == 422


def numbers(http: httpx.Client, query: str) -> list[float]:
    asked = query.replace("$job", ".+").replace("$instance", ".+").replace("$__rate_interval", "30s")
    answer = http.get("/api/v1/query", params={"query": asked}).json()
    assert answer["status"] == "success", (asked, answer)
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def test_every_panel_gets_an_answer(service: services.Server, tmp_path: Path) -> None:
    panels = [panel for panel in json.loads(dashboard.PATH.read_text())["panels"] if "targets" in panel]
    with prometheus(tmp_path, service.url) as http:
        up = until(lambda: numbers(http, 'up{job="sana"}'), lambda found: found == [1.0])
        assert up == [1.0]
        draw(service)
        until(lambda: numbers(http, "sum(rate(sana_images_total[30s]))"), lambda found: found and found[0] > 0)
        answers = {
            (panel["title"], target["expr"]): numbers(http, target["expr"])
            for panel in panels
            for target in panel["targets"]
        }
        rules = http.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        jobs = http.get("/api/v1/label/job/values", params={"match[]": "sana_build_info"}).json()["data"]
    silent = {title for (title, _), found in answers.items() if not any(math.isfinite(number) for number in found)}
    assert silent == WITHOUT_SERIES_ON_A_CPU
    assert len(answers) > 40
    by_title = {title: found for (title, _), found in answers.items()}
    assert by_title["Completed of accepted"] == [1.0]
    assert by_title["Ready replicas"] == [1.0]
    assert jobs == ["sana"]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def test_promtool_finds_no_fault_in_the_metrics(service: services.Server, tmp_path: Path) -> None:
    text = httpx.get(f"{service.url}/metrics", headers={"authorization": f"Key {KEY}"}).text
    ours = [line for line in text.splitlines() if line.startswith(("# HELP sana_", "# TYPE sana_", "sana_"))]
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input="\n".join(ours) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "prometheus.yaml").write_text(text.replace("/run/secrets/metrics-key", "key"))
    (tmp_path / "alerts.yaml").write_text((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    checked = run([tool("promtool"), "check", "config", tmp_path / "prometheus.yaml"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
