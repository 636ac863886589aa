"""The proxy's metrics: their names, labels and buckets, and the page they make. Who counts what is `proxy.record`'s.

Label sets are closed: route templates, served models or `_other`, tiers or `none`, status codes, enums. Never a key, an
address, a path or a name that a client chose. The page stays under 2,000 lines and is made in a thread.
"""

import asyncio
import sys
from collections.abc import Awaitable, Iterable, Iterator
from typing import Final, TypeVar

from prometheus_async.aio import time, track_inprogress
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector
from typing_extensions import override

from proxy.clock import Clock, StepWatch
from proxy.connections import Full
from proxy.tallies import Spread, Tally
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import SERVER_ERROR, SERVICE_UNAVAILABLE

T = TypeVar("T")
OTHER: Final = "_other"
NO_TIER: Final = "none"

LATENCY_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
FIRST_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80)
OVERHEAD_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
# From a fast disk to what timeouts.storage_s forgives, twice.
COMMIT_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

LAG_EVERY_S: Final = 0.5
CLOCK_EVERY_S: Final = 1.0
WINDOWS_S: Final = {"5m": 300.0, "1h": 3600.0, "24h": 86400.0}
# The share of a monthly quota that a key has used, by the upper end of each band.
BANDS: Final = (("0_50", 0.5), ("50_80", 0.8), ("80_95", 0.95), ("95_100", 1.0), ("over", float("inf")))


class ActiveClients(Collector):
    """Distinct keys seen within each window. Mutable: `_seen`, when each key last asked, in monotonic seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}

    def saw(self, key_id: str) -> None:
        # Last seen, last in order: what is too old stands first.
        self._seen.pop(key_id, None)
        self._seen[key_id] = self._clock.monotonic()

    def counts(self) -> dict[str, int]:
        now_s = self._clock.monotonic()
        ages = [now_s - seen_s for seen_s in list(self._seen.values())]
        return {window: sum(age <= length_s for age in ages) for window, length_s in WINDOWS_S.items()}

    def forget_old(self) -> None:
        """Drop who was not seen within the longest window; called on the event loop, which owns the order."""
        oldest_s = self._clock.monotonic() - max(WINDOWS_S.values())
        for key_id in [key_id for key_id, seen_s in self._seen.items() if seen_s < oldest_s]:
            del self._seen[key_id]

    @override
    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "tollhouse_proxy_active_clients", "Distinct keys that asked within a window.", labels=["window"]
        )
        for window, count in self.counts().items():
            family.add_metric([window], count)
        yield family


class QueueMetrics:
    """Told of who waits for a turn; see `proxy.admission.turn.QueueWatch`. Stateless."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def waiting(self, turn: Awaitable[T]) -> Awaitable[T]:
        return time(self._metrics.queue_wait, track_inprogress(self._metrics.queue_depth, turn))


class Metrics:
    """Every metric of the proxy, on a registry of its own."""

    def __init__(self, clock: Clock, registry: CollectorRegistry, release: str) -> None:
        self._registry = registry
        self.active = ActiveClients(clock)
        registry.register(self.active)
        ProcessCollector(registry=registry)
        self._requests(registry)
        self._decisions(registry)
        self._presence(registry)
        self._ledger(registry)
        self._policy(registry)
        self._house(registry, release)

    def _requests(self, registry: CollectorRegistry) -> None:
        self.requests = Tally(
            "tollhouse_proxy_requests_total",
            "Requests answered.",
            ["endpoint", "model", "tier", "code"],
            registry=registry,
        )
        self.duration = Spread(
            "tollhouse_proxy_request_duration_seconds",
            "From a request's head to the end of its answer.",
            ["endpoint", "stream"],
            bounds=LATENCY_S,
            registry=registry,
        )
        self.first_token = Spread(
            "tollhouse_proxy_time_to_first_token_seconds",
            "From a request's head to the first event of its answer, of those that are streamed.",
            ["model"],
            bounds=FIRST_TOKEN_S,
            registry=registry,
        )
        self.overhead = Spread(
            "tollhouse_proxy_overhead_seconds",
            "Time a request spent in each room of the proxy, the model's own time left out.",
            ["phase"],
            bounds=OVERHEAD_S,
            registry=registry,
        )
        self.tokens = Tally(
            "tollhouse_proxy_tokens_total", "Tokens charged.", ["model", "tier", "type"], registry=registry
        )

    def _decisions(self, registry: CollectorRegistry) -> None:
        self.errors = Counter(
            "tollhouse_proxy_errors_total", "Requests that ended in an error.", ["type", "origin"], registry=registry
        )
        for origin in ("upstream", "internal"):
            # From the start: a rate misses the first of what was not there before.
            for kind in (SERVER_ERROR, SERVICE_UNAVAILABLE):
                self.errors.labels(kind, origin)
        self.decisions = Tally(
            "tollhouse_proxy_policy_decisions_total",
            "What admission decided, by the rule that decided it.",
            ["policy", "decision"],
            registry=registry,
        )
        self.replay_entries = Gauge(
            "tollhouse_proxy_replay_entries",
            "Nonces that are remembered as used, but for those in a Valkey.",
            registry=registry,
        )
        self.refused_connections = Counter(
            "tollhouse_proxy_connections_refused_total",
            "Connections that were refused before a request was read.",
            ["reason"],
            registry=registry,
        )
        for why in Full:
            self.refused_connections.labels(why.value)
        self.keys_from_many_addresses = Counter(
            "tollhouse_proxy_keys_from_many_addresses_total",
            "Times a key was used from more addresses in an hour than its tier expects.",
            registry=registry,
        )

    def _presence(self, registry: CollectorRegistry) -> None:
        """Who is there, and who waits or leaves."""
        self.in_progress = Gauge(
            "tollhouse_proxy_requests_in_progress", "Requests being served now.", registry=registry
        )
        self.connections = Gauge(
            "tollhouse_proxy_connections", "Connections of clients that are open now.", registry=registry
        )
        self.open_streams = Gauge("tollhouse_proxy_open_streams", "Streams being relayed now.", registry=registry)
        self.queue_depth = Gauge(
            "tollhouse_proxy_queue_depth", "Requests that wait for others of their key to end.", registry=registry
        )
        self.queue_wait = Histogram(
            "tollhouse_proxy_queue_wait_seconds",
            "How long a request waited for others of its key to end.",
            buckets=LATENCY_S,
            registry=registry,
        )
        self.disconnects = Counter(
            "tollhouse_proxy_client_disconnects_total",
            "Clients that left before their answer was whole.",
            ["phase"],
            registry=registry,
        )
        for phase in ("before_first_token", "streaming"):
            self.disconnects.labels(phase)

    def _ledger(self, registry: CollectorRegistry) -> None:
        self.ledger_depth = Gauge(
            "tollhouse_proxy_ledger_queue_depth", "Ledger operations that wait for their commit.", registry=registry
        )
        self.ledger_lag = Gauge(
            "tollhouse_proxy_ledger_lag_seconds", "Age of the oldest ledger operation not on disk.", registry=registry
        )
        self.ledger_commit = Histogram(
            "tollhouse_proxy_ledger_commit_seconds", "Time of one ledger commit.", buckets=COMMIT_S, registry=registry
        )
        self.ledger_batch = Histogram(
            "tollhouse_proxy_ledger_batch_size", "Operations in one ledger commit.", buckets=BATCH, registry=registry
        )
        self.ledger_failures = Counter(
            "tollhouse_proxy_ledger_failures_total",
            "Commits of the ledger that failed, each attempt.",
            registry=registry,
        )

    def _house(self, registry: CollectorRegistry, release: str) -> None:
        self.upstream_up = Gauge(
            "tollhouse_proxy_upstream_up", "Whether a sidecar is ready.", ["upstream"], registry=registry
        )
        self.upstream_connections = Gauge(
            "tollhouse_proxy_upstream_connections",
            "Connections to sidecars, by whether a request runs on them.",
            ["state"],
            registry=registry,
        )
        self.keys = Gauge(
            "tollhouse_proxy_keys",
            "Usable keys with a monthly quota, by the largest share that is used, of theirs or their account's.",
            ["quota_band"],
            registry=registry,
        )
        self.quota_used = Gauge(
            "tollhouse_proxy_quota_used_ratio",
            "Share of a monthly quota, its own or its account's, that a key has used, of the keys nearest to theirs.",
            ["key", "tier"],
            registry=registry,
        )
        self.keys_checked = Gauge(
            "tollhouse_proxy_keys_last_check_timestamp_seconds",
            "When the database last said which keys were changed.",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "tollhouse_proxy_event_loop_lag_seconds",
            "How late the event loop runs what is due.",
            buckets=OVERHEAD_S,
            registry=registry,
        )
        self.valkey_up = Gauge(
            "tollhouse_proxy_valkey_up", "Whether limits are counted for all proxies together.", registry=registry
        )
        self.proxies = Gauge(
            "tollhouse_proxy_proxies", "Proxies that share their limits, as last known.", registry=registry
        )
        self.clock_steps = Counter(
            "tollhouse_proxy_clock_steps_total", "Times that the machine's clock was set.", registry=registry
        )
        Gauge("tollhouse_proxy_build_info", "What runs here.", ["version", "python"], registry=registry).labels(
            release, ".".join(map(str, sys.version_info[:3]))
        ).set(1)

    def _policy(self, registry: CollectorRegistry) -> None:
        self.policy = Gauge(
            "tollhouse_proxy_policy_info", "The policy revision in force.", ["revision"], registry=registry
        )
        self.reloads = Counter(
            "tollhouse_proxy_config_reloads_total",
            "Readings of the policy files after the first, by whether they were taken.",
            ["result"],
            registry=registry,
        )
        for result in ("ok", "error"):
            self.reloads.labels(result)
        self.reload_success = Gauge(
            "tollhouse_proxy_config_last_reload_success_timestamp_seconds",
            "When the policy files were last read and taken.",
            registry=registry,
        )
        self.reload_worked = Gauge(
            "tollhouse_proxy_config_last_reload_successful",
            "Whether the policy files were taken when they were last read.",
            registry=registry,
        )

    async def families(self) -> list[Metric]:
        """What the page is made of."""
        return await asyncio.to_thread(lambda: list(self._registry.collect()))

    async def page(self, *, openmetrics: bool = False) -> bytes:
        """The text that Prometheus scrapes. Only OpenMetrics has the traces that stand for a bucket."""
        self.active.forget_old()
        if openmetrics:
            return bytes(await asyncio.to_thread(exposition.generate_latest, self._registry))
        return await asyncio.to_thread(generate_latest, self._registry)


def quota_bands(shares: Iterable[tuple[float, int]]) -> dict[str, int]:
    """How many keys are in each band, from shares and how many keys have each; exactly an upper end belongs to it."""
    counts = {name: 0 for name, _ in BANDS}
    for share, keys in shares:
        counts[next(name for name, end in BANDS if share <= end)] += keys
    return counts


async def watch_loop(lag: Histogram) -> None:
    """Measure how late the event loop is, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        lag.observe(max(0.0, loop.time() - due_s))


async def watch_clock(clock: Clock, steps: Counter, log: JsonLog) -> None:
    """Tell when the machine's clock was set, for ever."""
    watch = StepWatch(clock)
    while True:
        await asyncio.sleep(CLOCK_EVERY_S)
        step_s = watch.step_s()
        if step_s is not None:
            steps.inc()
            log.warning(
                "clock_stepped",
                seconds=round(step_s, 3),
                hint="Limits per minute go on as they were. Months and expiry dates follow the clock as it is now.",
            )
