"""The dashboard and docs/metrics.md speak of metrics and labels that exist; the dashboard keeps the linter's rules."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from proxy.clock import SystemClock
from proxy.metrics import Metrics as ProxyMetrics
from sidecar.metrics import Metrics as SidecarMetrics

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "conf/grafana/dashboards/tollhouse.json"
METRICS_PAGE = ROOT / "docs/metrics.md"
# Prometheus puts these on everything it scrapes.
SCRAPED = {"job", "instance"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def registries() -> tuple[CollectorRegistry, CollectorRegistry]:
    proxy = CollectorRegistry()
    ProxyMetrics(SystemClock(), proxy, "0.1.0")
    return proxy, SidecarMetrics("model").registry


def metrics() -> dict[str, tuple[str, set[str]]]:
    """Every metric of both processes, by the name its HELP line has: its type and its labels."""
    found: dict[str, tuple[str, set[str]]] = {}
    for registry in registries():
        for collector in registry._collector_to_names:
            if isinstance(collector, MetricWrapperBase):
                described = next(iter(collector.describe()))
                labels = set(collector._labelnames)
            else:
                described = next(iter(collector.collect()))
                labels = {name for sample in described.samples for name in sample.labels}
            if described.name.startswith("tollhouse_"):
                name = described.name + ("_total" if described.type == "counter" else "")
                found[name] = (described.type, labels)
    return found


def series() -> dict[str, set[str]]:
    """What can be selected: series names with their labels."""
    found: dict[str, set[str]] = {}
    for name, (kind, labels) in metrics().items():
        for suffix in SUFFIXES[kind]:
            extra = {"le"} if suffix == "_bucket" else set()
            found[name.removesuffix("_total") + suffix] = labels | extra | SCRAPED
    return found


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ]


def parse(expression: str) -> Any:
    return promql.parse(expression.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".+"))


def nodes(node: Any) -> Iterator[Any]:
    """The node and all below it."""
    yield node
    below = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    for child in (*below, *getattr(node, "args", [])):
        if child is not None:
            yield from nodes(child)


def selectors(node: Any) -> list[Any]:
    return [found for found in nodes(node) if isinstance(found, promql.VectorSelector)]


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_selects_series_and_labels_that_exist(expression: str) -> None:
    known = series()
    tree = parse(expression)
    assert selectors(tree)
    labels: set[str] = set()
    for selector in selectors(tree):
        assert selector.name in known, selector.name
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name]
        labels |= known[selector.name]
    for node in nodes(tree):
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= labels


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_can_be_narrowed_and_suits_every_scrape_interval(expression: str) -> None:
    for selector in selectors(parse(expression)):
        assert {matcher.name for matcher in selector.matchers.matchers} >= SCRAPED
    assert expression.count("rate(") == expression.count("[$__rate_interval]")
    # Counters only grow: each is looked at through its rate or increase, and nothing else is.
    for node in nodes(parse(expression)):
        if isinstance(node, promql.Call) and node.func.name in {"rate", "increase"}:
            assert re.search(r"_(total|bucket|sum|count)$", selectors(node)[0].name)
    counted = re.findall(r"\w+_(?:total|bucket|sum|count)\{", expression)
    assert len(counted) == expression.count("rate(") + expression.count("increase(")


def test_the_panels_say_what_they_show_and_in_which_unit() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles)) >= 20
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_the_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_the_data_source_is_a_variable_and_nothing_has_a_fixed_uid() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    assert "uid" not in dashboard()
    sources = [found["datasource"] for panel in panels() for found in (panel, *panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    for name in ("job", "instance"):
        named = re.findall(r"tollhouse_\w+", variables[name]["query"]["query"])
        assert len(named) == 2
        assert set(named) <= set(series())


def test_the_page_on_metrics_has_each_with_its_type_and_labels_and_no_other() -> None:
    rows = re.findall(r"^\| `(tollhouse_\w+)` \| (\w+) \| (.*?) \|", METRICS_PAGE.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == metrics()
