"""Each alert rule is valid, is proved by unit tests, asks for metrics that exist, and is explained to who is woken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploy.grafana.dashboard import metric_names
from sana_service.metrics import catalogue
from tests.deploy.tools import DEPLOY, run, tool
from tests.services import REPOSITORY

RULES = DEPLOY / "prometheus" / "alerts.yaml"
TESTS = DEPLOY / "prometheus" / "alerts_test.yaml"

ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
NAMES = [alert["alert"] for alert in ALERTS]


def test_promtool_accepts_the_rules():
    checked = run([tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", RULES])
    assert checked.returncode == 0, checked.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in checked.stdout


def test_the_unit_tests_pass():
    tested = run([tool("promtool"), "test", "rules", TESTS.name], cwd=TESTS.parent)
    assert tested.returncode == 0, tested.stderr
    assert "SUCCESS" in tested.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_tests_notice_an_alert_that_never_fires(name: str, tmp_path: Path):
    """Each rule is broken once, so that no unit test passes whatever the rule says."""
    rules = yaml.safe_load(RULES.read_text())
    broken = next(rule for rule in rules["groups"][0]["rules"] if rule["alert"] == name)
    broken["expr"] = f"({broken['expr']}) and on () vector(0) > 1"
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    tested = run([tool("promtool"), "test", "rules", TESTS.name], cwd=tmp_path)
    assert tested.returncode != 0
    assert f"alertname: {name}" in tested.stderr


def test_each_alert_is_also_shown_silent():
    tests = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    silent = {case["alertname"] for case in tests if not case["exp_alerts"]}
    assert silent == set(NAMES)


def test_the_rules_ask_for_metrics_and_labels_that_exist():
    known = {one.name: one for one in catalogue()}
    for alert in ALERTS:
        names = metric_names(alert["expr"])
        assert names
        assert names <= set(known), alert["alert"]
        for name, label in re.findall(r"(sana_[a-z_]+)\{(\w+)=", alert["expr"]):
            assert label in known[name].labels, alert["alert"]


def test_each_alert_is_explained():
    documented = (REPOSITORY / "docs" / "metrics.md").read_text()
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert f"| `{alert['alert']}` | {alert['labels']['severity']} |" in documented
