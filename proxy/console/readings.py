"""What the metrics say at a moment, and what happened between two of them. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import msgspec
from prometheus_client import Metric

from sidecar.wire.internal import Endpoint

PROXY: Final = "tollhouse_proxy_"
SIDECAR: Final = "tollhouse_sidecar_"
# A metric's samples, by their labels.
Series = dict[tuple[tuple[str, str], ...], float]
QUANTILES: Final = (0.5, 0.95, 0.99)
_ENDPOINTS: Final = frozenset(Endpoint)


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one page of metrics, by name without its prefix."""

    series: Mapping[str, Series] = field(default_factory=dict)

    @classmethod
    def of(cls, families: Iterable[Metric], prefix: str, names: frozenset[str]) -> "Page":
        """Those of the families that are named, without the prefix."""
        kept: dict[str, Series] = defaultdict(dict)
        for family in families:
            if family.name.removeprefix(prefix) in names:
                for sample in family.samples:
                    kept[sample.name.removeprefix(prefix)][tuple(sorted(sample.labels.items()))] = sample.value
        return cls(dict(kept))

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        wanted = labels.items()
        return sum(value for key, value in self.series.get(name, {}).items() if wanted <= dict(key).items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for key, value in self.series.get(name, {}).items():
            sums[dict(key).get(label, "")] += value
        return dict(sums)

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram's cumulative counts by their upper ends, all its label sets together, of requests to models.

        A page of the API that is looked at often would make answers look quick.
        """
        sums: dict[float, float] = defaultdict(float)
        for key, count in self.series.get(f"{name}_bucket", {}).items():
            labels = dict(key)
            if "endpoint" not in labels or labels["endpoint"] in _ENDPOINTS:
                sums[float(labels["le"])] += count
        return dict(sums)


@dataclass(frozen=True, slots=True)
class Reading:
    """All pages at a moment, in monotonic seconds; `sidecars` are those that answered."""

    at_s: float
    proxy: Page
    sidecars: Mapping[str, Page]


class Quantiles(msgspec.Struct, frozen=True):
    """In seconds."""

    p50: float
    p95: float
    p99: float


class Engine(msgspec.Struct, frozen=True):
    """One sidecar: what it runs, what waits for it, and how full its KV cache is, from 0 to 1."""

    running: int
    waiting: int
    kv_used: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the overview draws of a moment, `at` in UTC seconds.

    Rates are those since the sample before, errors are counted since then; quantiles are of the last minute, None
    where no request ended in it.
    """

    at: float
    requests_per_s: float
    tokens_in_per_s: float
    tokens_out_per_s: float
    latency: Quantiles | None
    first_token: Quantiles | None
    errors: dict[str, int]
    in_progress: int
    queued: int
    open_streams: int
    active: int
    bands: dict[str, int]
    engines: dict[str, Engine | None]


def sample(minute_ago: Reading, before: Reading, now: Reading, at: float, upstreams: Iterable[str]) -> Sample:
    span_s = max(now.at_s - before.at_s, 0.001)
    proxy, was = now.proxy, before.proxy

    def rate(name: str, **labels: str) -> float:
        return round(max(0.0, proxy.total(name, **labels) - was.total(name, **labels)) / span_s, 3)

    errors = {
        kind: round(count - was.by("errors_total", "type").get(kind, 0.0))
        for kind, count in proxy.by("errors_total", "type").items()
    }
    return Sample(
        at=at,
        requests_per_s=rate("requests_total"),
        tokens_in_per_s=rate("tokens_total", type="input"),
        tokens_out_per_s=rate("tokens_total", type="output"),
        latency=_quantiles(minute_ago.proxy, proxy, "request_duration_seconds"),
        first_token=_quantiles(minute_ago.proxy, proxy, "time_to_first_token_seconds"),
        errors={kind: count for kind, count in errors.items() if count},
        in_progress=round(proxy.total("requests_in_progress")),
        queued=round(proxy.total("queue_depth")),
        open_streams=round(proxy.total("open_streams")),
        active=round(proxy.total("active_clients", window="5m")),
        bands={band: round(count) for band, count in proxy.by("keys", "quota_band").items()},
        engines={name: _engine(now.sidecars.get(name)) for name in upstreams},
    )


def _engine(page: Page | None) -> Engine | None:
    if page is None:
        return None
    running, waiting = round(page.total("requests_running")), round(page.total("requests_waiting"))
    return Engine(running, waiting, round(page.total("kv_cache_used_ratio"), 4))


def _quantiles(before: Page, now: Page, name: str) -> Quantiles | None:
    was = before.buckets(name)
    grown = sorted((end, count - was.get(end, 0.0)) for end, count in now.buckets(name).items())
    found = [quantile(grown, share) for share in QUANTILES]
    if any(value is None for value in found):
        return None
    p50, p95, p99 = (round(value or 0.0, 4) for value in found)
    return Quantiles(p50, p95, p99)


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """By linear interpolation, as Prometheus does; beyond the last finite bucket it is that bucket's end.

    `buckets`: upper ends in order, with cumulative counts. None if there is nothing in them.
    """
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = share * buckets[-1][1]
    for (start, below), (end, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= rank:
            if end == float("inf"):
                return start
            return start + (end - start) * (rank - below) / max(count - below, 1e-9)
    return None
