"""Writes the dashboards in conf/grafana/dashboards: what is on them, from `boards`, in the form that Grafana reads.

    .venv/bin/python conf/grafana/build.py

A test holds the files to what this writes.
"""

import json
from pathlib import Path
from typing import Final

from boards import engine, gate, overview, tenants
from boards.panel import SELECTED, Board, Panel
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as parts

FOLDER: Final = Path(__file__).parent / "dashboards"
SOURCE: Final = parts.DataSourceRef(type_val="prometheus", uid="${datasource}")
# What both processes always have, so that every job and instance is offered.
PRESENT: Final = '{__name__=~"tollhouse_proxy_build_info|tollhouse_sidecar_model_info"'
DASHBOARDS: Final = {"overview": overview, "tenants": tenants, "engine": engine, "gate": gate}
WIDTHS: Final = {"stat": 4, "lines": 8, "area": 8}


def build(board: Board) -> str:
    """The dashboard's JSON."""
    made = (
        dashboard.Dashboard(board.title)
        .description(board.description)
        .tags(["tollhouse"])
        .editable()
        .tooltip(parts.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "Job", f"label_values({PRESENT}}}, job)"))
        .with_variable(_variable("instance", "Instance", f'label_values({PRESENT}, job=~"$job"}}, instance)'))
        .link(
            dashboard.DashboardLink("Tollhouse")
            .type(parts.DashboardLinkType.DASHBOARDS)
            .tags(["tollhouse"])
            .as_dropdown(as_dropdown=True)
            .keep_time(keep_time=True)
        )
    )
    number = 0
    for row in board.rows:
        number += 1
        made.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made.with_panel(_panel(panel, number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": "StandardVariableQuery"})
        .refresh(parts.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(parts.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(parts.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _panel(panel: Panel, number: int) -> stat.Panel | timeseries.Panel:
    made = _stat(panel) if panel.kind == "stat" else _series(panel)
    made.id(number).title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit)
    made.height(4 if panel.kind == "stat" else 8).span(WIDTHS[panel.kind])
    if panel.most is not None:
        made.max(panel.most)
    for at, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().datasource(SOURCE).ref_id("ABCDEF"[at]).legend_format(legend)
        query.expr(expression.replace(SELECTED, 'job=~"$job", instance=~"$instance"'))
        made.with_target(query.instant() if panel.kind == "stat" else query.range())
    return made


def _stat(panel: Panel) -> stat.Panel:
    made = stat.Panel().color_mode(look.BigValueColorMode.VALUE).graph_mode(look.BigValueGraphMode.NONE)
    if panel.named:
        made.text_mode(look.BigValueTextMode.NAME)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    steps = [parts.Threshold(None, "green"), *(parts.Threshold(value, colour) for value, colour in panel.steps)]
    return made.thresholds(dashboard.ThresholdsConfig().mode(parts.ThresholdsMode.ABSOLUTE).steps(steps))


def _series(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().line_width(1).show_points(look.VisibilityMode.NEVER).min(0)
    made.tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
    legend = common.VizLegendOptions().display_mode(look.LegendDisplayMode.LIST).show_legend(show_legend=True)
    made.legend(legend.placement(look.LegendPlacement.BOTTOM).calcs([]))
    if panel.kind == "area":
        made.fill_opacity(20).stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    return made


def main() -> None:
    for name, module in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(build(module.BOARD))


if __name__ == "__main__":
    main()
