"""The shipped rules and alerts: they ask for what exists, fire when they should, and each alert says what to do."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.scopes import ROUTES
from sidecar.wire.internal import Endpoint
from tests.fakes import registries

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conf/prometheus"
CASES = ROOT / "tests/unit/prometheus/alerts.yml"
OPERATIONS = ROOT / "docs/operations.md"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None and os.environ.get("CI") != "true", reason="promtool (Debian's prometheus) is not installed"
)
# What is labelled so is not scraped from us but added by Prometheus.
OWN = {"up": registries.SCRAPED}


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return rules("alerts.yml")


def recorded() -> dict[str, set[str]]:
    """The recorded series with their labels, which their names begin with."""
    return {rule["record"]: set(rule["record"].split(":")[0].split("_")) for rule in rules("rules.yml")}


@pytest.mark.parametrize("rule", [*rules("rules.yml"), *alerts()], ids=lambda rule: rule.get("record") or rule["alert"])
def test_each_rule_asks_for_series_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert registries.unknown(rule["expr"], registries.series() | recorded() | OWN) == []


def test_each_recorded_series_is_of_the_labels_in_its_name() -> None:
    for rule in rules("rules.yml"):
        for labels in re.findall(r"by \(([\w, ]+)\)", rule["expr"]):
            assert set(labels.split(", ")) - {"le"} == recorded()[rule["record"]], rule["record"]


def test_durations_are_those_of_all_requests_to_models_and_of_no_page() -> None:
    board = (ROOT / "conf/grafana/boards/overview.py").read_text()
    chosen = re.findall(r'endpoint=~"([^"]+)"', (FOLDER / "rules.yml").read_text() + board)
    assert len(chosen) == 4  # three rules and the dashboard
    for places in chosen:
        assert {place for place in ROUTES if re.fullmatch(places, place)} == set(Endpoint)


def test_each_alert_says_how_urgent_it_is_what_is_wrong_and_where_it_is_written_what_to_do() -> None:
    text = OPERATIONS.read_text()
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    (section,) = [part for part in section if part.startswith("Alerts\n")]
    runbooks = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))
    for alert in alerts():
        assert alert["labels"]["severity"] in {"page", "ticket", "info"}
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    assert list(runbooks) == [alert["alert"] for alert in alerts()]
    for name, runbook in runbooks.items():
        for part in ("Means", "Look", "Do"):
            assert re.search(rf"^\*\*{part}:\*\* .", runbook, re.MULTILINE), (name, part)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    fires: set[str] = set()
    quiet: set[str] = set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        (tried,) = case["alert_rule_test"]
        told, _, _ = case["name"].partition(":")
        assert told == f"{tried['alertname']} {'fires' if tried['exp_alerts'] else 'is quiet'}"
        (fires if tried["exp_alerts"] else quiet).add(tried["alertname"])
    assert fires == quiet == {alert["alert"] for alert in alerts()}


@needs_promtool
def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "rules.yml", FOLDER / "alerts.yml")


@needs_promtool
def test_the_alerts_fire_when_they_should_and_not_else() -> None:
    promtool("test", "rules", CASES)


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
