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
from prometheus_client.samples import Exemplar
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
    """A histogram.

    Mutable: `_counts`, of each bucket by their labels, and `_sums` likewise; `_exemplars`, the last one of each bucket.
    """

    def __init__(
        self, name: str, about: str, labels: Sequence[str], *, bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._about = about
        self._labels = labels
        self._bounds = (*map(float, bounds), float("inf"))
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._exemplars: dict[tuple[Labels, int], Exemplar] = {}
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            self._sums[labels] = 0.0
            counts = self._counts[labels] = [0] * len(self._bounds)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def exemplify(self, value: float, trace_id: str, utc_s: float, *labels: str) -> None:
        """Name a trace in which the value was seen. Only OpenMetrics shows it."""
        place = labels, bisect_left(self._bounds, value)
        self._exemplars[place] = Exemplar({"trace_id": trace_id}, value, utc_s)

    @override
    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        for labels, counts in list(self._counts.items()):
            below = 0
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for at, (bound, count) in enumerate(zip(self._bounds, counts, strict=True)):
                below += count
                bucket = str(floatToGoString(bound)), float(below)  # type: ignore[no-untyped-call]  # a library's
                exemplar = self._exemplars.get((labels, at))
                buckets.append(bucket if exemplar is None else (*bucket, exemplar))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
