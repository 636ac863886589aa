"""What a dashboard is made of: panels with their words, units and queries. How it looks is build's.

`@` in an expression stands for the matchers that narrow it to the job and the instance chosen at the dashboard's top.
"""

from dataclasses import dataclass
from typing import Final, Literal

SELECTED: Final = "@"
RATE: Final = "[$__rate_interval]"
P: Final = "tollhouse_proxy_"
S: Final = "tollhouse_sidecar_"

Query = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are expressions with their legends. `steps`: from which value on a stat has which colour; green before.

    `named`: what a stat shows is the legend, not the number. `most`: where the axis ends.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["lines", "area", "stat"] = "lines"
    steps: tuple[tuple[float, str], ...] = ()
    named: bool = False
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    title: str
    description: str
    rows: tuple[Row, ...]


def rate(name: str, by: str = "", more: str = "") -> str:
    """How fast a counter grows, added up by the labels `by`; `more` are further matchers."""
    return f"{_sum(by)}(rate({name}{{@{more}}}{RATE}))"


def gauge(name: str, by: str = "", how: str = "sum") -> str:
    return f"{_sum(by, how)}({name}{{@}})"


def quantile(share: float, name: str, by: str = "", more: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({name}_bucket{{@{more}}}{RATE})))"


def quantiles(name: str, more: str = "") -> tuple[Query, ...]:
    named = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    return tuple((quantile(share, name, more=more), legend) for share, legend in named)


def mean(name: str, by: str = "") -> str:
    return ratio(rate(f"{name}_sum", by), rate(f"{name}_count", by))


def ratio(part: str, whole: str) -> str:
    return f"{part} / {whole}"


def _sum(by: str, how: str = "sum") -> str:
    return f"{how} by ({by}) " if by else how
