"""The dashboard and docs/metrics.md speak of metrics and labels that exist; the dashboard keeps the linter's rules."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

from tests.fakes.registries import SCRAPED, metrics, nodes, selectors, series, unknown

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "conf/grafana/dashboards/tollhouse.json"
METRICS_PAGE = ROOT / "docs/metrics.md"


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


def filled_in(expression: str) -> str:
    return expression.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".+")


def parse(expression: str) -> Any:
    return promql.parse(filled_in(expression))


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_selects_series_and_labels_that_exist(expression: str) -> None:
    assert unknown(filled_in(expression), series()) == []


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
