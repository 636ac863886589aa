"""Counters and histograms for what every request counts: a sum in a dict, made into samples when the page is.

Those of prometheus_client take a lock and a handful of calls for each sum. These have one owner, the event loop; the
page is made in a thread, of copies. Names and samples are the same, but for the times at which series were begun: those
double the page and say nothing.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from typing_extensions import override

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter. Mutable: `_sums`, by their labels."""

    def __init__(self, name: str, about: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._sums: dict[Labels, float] = {}
        registry.register(self)

    def add(self, by: float, *labels: str) -> None:
        self._sums[labels] = self._sums.get(labels, 0.0) + by

    @override
    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for labels, total in list(self._sums.items()):
            family.add_metric(labels, total)
        yield family


class Spread(Collector):
    """A histogram. Mutable: `_counts`, of each bucket by their labels, and `_sums` likewise."""

    def __init__(
        self, name: str, about: str, labels: Sequence[str], *, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._bounds = (*map(float, bounds), float("inf"))
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            self._sums[labels] = 0.0
            counts = self._counts[labels] = [0] * len(self._bounds)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    @override
    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for labels, counts in list(self._counts.items()):
            below, buckets = 0, []
            for bound, count in zip(self._bounds, counts, strict=True):
                below += count
                buckets.append((str(floatToGoString(bound)), float(below)))  # type: ignore[no-untyped-call]  # a library's
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
