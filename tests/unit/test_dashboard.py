"""The dashboards and docs/metrics.md speak of metrics and labels that exist; the dashboards keep the linter's rules."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

from tests.fakes.registries import SCRAPED, metrics, nodes, selectors, series, unknown

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conf/grafana"
NAMES = ["engine", "gate", "overview", "tenants"]
METRICS_PAGE = ROOT / "docs/metrics.md"
RUNBOOKS = ROOT / "docs/operations.md"
# Of sidecars, keys and proxies that several proxies share, each of them tells the same.
TOLD_BY_EACH = {f"tollhouse_proxy_{name}" for name in ("upstream_up", "keys", "quota_used_ratio", "proxies")}


def dashboard(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / "dashboards" / f"{name}.json").read_text()))


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def expressions() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")
        for name in NAMES
        for panel in panels(name)
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


@pytest.mark.parametrize("expression", expressions())
def test_what_each_of_several_proxies_tells_is_not_added_up(expression: str) -> None:
    for node in nodes(parse(expression)):
        if isinstance(node, promql.AggregateExpr) and getattr(node.expr, "name", None) in TOLD_BY_EACH:
            assert str(node.op) in {"max", "min"}


@pytest.mark.parametrize("name", NAMES)
def test_no_axis_has_both_requests_and_tokens(name: str) -> None:
    for panel in panels(name):
        drawn = {
            "tokens" if "tokens" in selector.name else "requests"
            for target in panel["targets"]
            for selector in selectors(parse(target["expr"]))
        }
        assert len(drawn) == 1, panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_the_panels_say_what_they_show_and_in_which_unit(name: str) -> None:
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles)) >= 9
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("name", NAMES)
def test_the_panels_lie_side_by_side(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard(name)["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", NAMES)
def test_the_data_source_is_a_variable_and_nothing_has_a_fixed_uid(name: str) -> None:
    variables = {variable["name"]: variable for variable in dashboard(name)["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    assert "uid" not in dashboard(name)
    sources = [found["datasource"] for panel in panels(name) for found in (panel, *panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    for label in ("job", "instance"):
        named = re.findall(r"tollhouse_\w+", variables[label]["query"]["query"])
        assert len(named) == 2
        assert set(named) <= set(series())


def test_every_metric_of_the_house_is_on_a_dashboard() -> None:
    shown = {selector.name for told in expressions() for selector in selectors(parse(told.values[0]))}
    unseen = {name for name in metrics() if not any(s.startswith(name.removesuffix("_total")) for s in shown)}
    assert unseen == set()


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_the_generator_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    monkeypatch.syspath_prepend(str(FOLDER))
    build = importlib.import_module("build")
    written = (FOLDER / "dashboards" / f"{name}.json").read_text()
    assert build.build(build.DASHBOARDS[name].BOARD) == written


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_grafanas_own_schema_reads_and_writes(name: str) -> None:
    """Read by Grafana's types and written again, nothing is lost: no field is misspelt or of another type."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    encoder = importlib.import_module("grafana_foundation_sdk.cog.encoder")
    models = importlib.import_module("grafana_foundation_sdk.models.dashboard")
    importlib.import_module("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    read = models.Dashboard.from_json(dashboard(name))
    assert json.loads(json.dumps(read, cls=encoder.JSONEncoder)) == dashboard(name)


def test_the_runbooks_speak_of_panels_that_exist() -> None:
    boards = {dashboard(name)["title"].removeprefix("Tollhouse: ").capitalize(): name for name in NAMES}
    named = re.findall(
        r'"([^"]+)" on the dashboard\s+(Overview|Tenants and quotas|Engine|Gate and abuse)', RUNBOOKS.read_text()
    )
    assert len(named) >= 5
    for title, board in named:
        assert title in {panel["title"].split(",")[0] for panel in panels(boards[board])}, (title, board)


def test_the_page_on_metrics_has_each_with_its_type_and_labels_and_no_other() -> None:
    rows = re.findall(r"^\| `(tollhouse_\w+)` \| (\w+) \| (.*?) \|", METRICS_PAGE.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == metrics()
