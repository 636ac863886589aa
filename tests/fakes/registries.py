"""What can be asked of Prometheus: each metric of both processes, as their registries have it, and PromQL's trees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
from prometheus_client import CollectorRegistry

from proxy.clock import SystemClock
from proxy.disk import Disk
from proxy.metrics import Metrics as ProxyMetrics
from sidecar.metrics import Metrics as SidecarMetrics

# Prometheus puts these on everything it scrapes.
SCRAPED = {"job", "instance"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def registries() -> tuple[CollectorRegistry, CollectorRegistry]:
    proxy = CollectorRegistry()
    proxy.register(Disk(Path()))
    ProxyMetrics(SystemClock(), proxy, "0.1.0")
    return proxy, SidecarMetrics("model").registry


def metrics() -> dict[str, tuple[str, set[str]]]:
    """Every metric, by the name its HELP line has: its type and its labels."""
    found: dict[str, tuple[str, set[str]]] = {}
    for registry in registries():
        for collector in registry._collector_to_names:
            # The library's own have a name for them, ours another, and those that are made anew each time none.
            known = getattr(collector, "_labelnames", getattr(collector, "_labels", None))
            for family in collector.collect():
                labels = {name for sample in family.samples for name in sample.labels} if known is None else known
                if family.name.startswith("tollhouse_"):
                    name = family.name + ("_total" if family.type == "counter" else "")
                    found[name] = (family.type, set(labels))
    return found


def series() -> dict[str, set[str]]:
    """What can be selected: series names with their labels."""
    found: dict[str, set[str]] = {}
    for name, (kind, labels) in metrics().items():
        for suffix in SUFFIXES[kind]:
            extra = {"le"} if suffix == "_bucket" else set()
            found[name.removesuffix("_total") + suffix] = labels | extra | SCRAPED
    return found


def nodes(node: Any) -> Iterator[Any]:
    """A parsed expression's node and all below it."""
    yield node
    below = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    for child in (*below, *getattr(node, "args", [])):
        if child is not None:
            yield from nodes(child)


def selectors(node: Any) -> list[Any]:
    return [found for found in nodes(node) if isinstance(found, promql.VectorSelector)]


def unknown(expression: str, known: dict[str, set[str]]) -> list[str]:
    """What an expression asks for that is not there: names of series, and labels that they do not have."""
    tree = promql.parse(expression)
    missing: list[str] = []
    labels: set[str] = set()
    for selector in selectors(tree):
        if selector.name not in known:
            missing.append(selector.name)
            continue
        named = {matcher.name for matcher in selector.matchers.matchers}
        missing += [f"{selector.name}{{{label}}}" for label in named - known[selector.name]]
        labels |= known[selector.name]
    for node in nodes(tree):
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            missing += [f"by ({label})" for label in set(node.modifier.labels) - labels]
    return missing if selectors(tree) else ["nothing is selected"]
