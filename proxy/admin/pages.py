"""What the admin listeners show without asking who asks: health, state and metrics. Nothing here changes anything.

`livez` says that the process runs, `readyz` that a request can be answered now, `healthz` why not. The sidecars' own
metrics are passed on, because Prometheus cannot scrape a Unix socket.
"""

import contextlib
import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
from prometheus_client import Metric

from proxy.admin.desk import Desk
from proxy.admin.openapi import merged
from proxy.admin.records import ServerState, UpstreamState
from proxy.admin.reports import quota_shares
from proxy.asked import UpstreamLostError
from proxy.clock import Clock
from proxy.metrics import Metrics, quota_bands
from proxy.sockets import url
from proxy.upstream import Upstreams
from sidecar.wire.errors import ApiError, unavailable
from sidecar.yamlfile import Problem

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text"
OPENMETRICS_VERSION: Final = "; version=1.0.0; charset=utf-8"
# The quota bands cost a query over all keys: they are made anew this often at most.
BANDS_EVERY_S: Final = 15.0
MOST_PROBLEMS: Final = 20


class Backlog(Protocol):
    """What the ledger's writer has not yet on disk, and whether it can get there; see `proxy.store.writer.Writer`."""

    @property
    def depth(self) -> int: ...
    @property
    def lag_s(self) -> float: ...
    @property
    def away_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Place:
    """What the server is, where it listens, and which of its lives this is."""

    release: str
    host: str
    port: int
    admin_host: str
    admin_port: int
    boot_id: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to be sent as it is."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Pages:
    """The pages. Mutable: `draining`, once the server is told to end; `_bands_s`, when the quota bands
    were made, for a page and for samples.
    """

    def __init__(
        self,
        desk: Desk,
        upstreams: Upstreams,
        backlog: Backlog,
        *,
        metrics: Metrics,
        clock: Clock,
        in_progress: Callable[[], int],
        policy_problems: Callable[[], Sequence[Problem]],
        storage_s: float,
        quota_top: int = 0,
    ) -> None:
        self._desk = desk
        self._upstreams = upstreams
        self._backlog = backlog
        self._metrics = metrics
        self._clock = clock
        self._in_progress = in_progress
        self._policy_problems = policy_problems
        self._storage_s = storage_s
        self._quota_top = quota_top
        self._bands_s: dict[str, float] = {}
        self.draining = False

    @property
    def not_ready(self) -> str:
        """Why no request can be answered now; empty if one can."""
        if self.draining:
            return "draining"
        if max(self._backlog.lag_s, self._backlog.away_s) > self._storage_s:
            return "storage"
        if self._upstreams.ready:
            return ""
        return next((sidecar.reason for sidecar in self._upstreams.sidecars if sidecar.reason), "no upstream")

    def state(self, place: Place) -> ServerState:
        reason = self.not_ready
        return ServerState(
            version=place.release,
            pid=os.getpid(),
            ready=not reason,
            reason=reason,
            host=place.host,
            port=place.port,
            admin_host=place.admin_host,
            admin_port=place.admin_port,
            boot_id=place.boot_id,
            policy_revision=self._desk.policy.revision,
            requests_in_progress=self._in_progress(),
            upstreams=[
                UpstreamState(sidecar.name, sidecar.ready, sidecar.reason, sorted(sidecar.models or ()))
                for sidecar in self._upstreams.sidecars
            ],
            policy_problems=[str(problem) for problem in self._policy_problems()][:MOST_PROBLEMS],
            tls=place.tls,
            tiers=sorted(self._desk.policy.tiers),
        )

    def livez(self) -> Page:
        return Page(b'{"status":"ok"}')

    def readyz(self) -> Page:
        reason = self.not_ready
        body = msgspec.json.encode({"ready": not reason, "reason": reason})
        return Page(body, 503 if reason else 200)

    def healthz(self, place: Place) -> Page:
        state = self.state(place)
        return Page(msgspec.json.encode(state), 200 if state.ready else 503)

    async def metrics(self, accepted: str = "") -> Page:
        """`accepted`: the request's Accept. Prometheus asks for OpenMetrics, and takes text from who has none."""
        await self._refresh("page")
        if OPENMETRICS in accepted:
            return Page(await self._metrics.page(openmetrics=True), content_type=f"{OPENMETRICS}{OPENMETRICS_VERSION}")
        return Page(await self._metrics.page(), content_type=METRICS_TYPE)

    async def families(self) -> list[Metric]:
        """The same, not yet written down."""
        await self._refresh("samples")
        return await self._metrics.families()

    async def _refresh(self, whose: str) -> None:
        """Bring the gauges up to date that nobody moves. Who samples does not make a page older than it is."""
        metrics = self._metrics
        for sidecar in self._upstreams.sidecars:
            metrics.upstream_up.labels(sidecar.name).set(sidecar.ready)
        counts = [sidecar.connections for sidecar in self._upstreams.sidecars]
        for state, count in zip(("busy", "idle"), map(sum, zip((0, 0), *counts, strict=True)), strict=True):
            metrics.upstream_connections.labels(state).set(count)
        metrics.ledger_depth.set(self._backlog.depth)
        metrics.ledger_lag.set(self._backlog.lag_s)
        await self._make_bands(whose)

    async def sidecar_metrics(self, name: str) -> Page:
        """Raises ApiError 404 or 503."""
        sidecar = self._upstreams.named(name)
        if sidecar is None:
            raise ApiError(404, "There is no upstream of that name.", code="unknown_upstream")
        try:
            return Page(await sidecar.metrics(), content_type=METRICS_TYPE)
        except UpstreamLostError as exc:
            raise unavailable("The sidecar broke off.", code="upstream_unavailable", retry_after_s=1) from exc

    async def openapi(self, place: Place) -> Page:
        """The document of the public listener, from the first sidecar that gives it. Raises ApiError 503."""
        for sidecar in sorted(self._upstreams.sidecars, key=lambda sidecar: not sidecar.ready):
            with contextlib.suppress(ApiError, UpstreamLostError, msgspec.MsgspecError):
                return Page(merged(await sidecar.openapi(), url(place.host, place.port, tls=place.tls)))
        raise unavailable("No sidecar can be reached.", code="upstream_unavailable", retry_after_s=1)

    async def _make_bands(self, whose: str) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._bands_s.get(whose, -BANDS_EVERY_S) < BANDS_EVERY_S:
            return
        self._bands_s[whose] = now_s
        try:
            shares = await quota_shares(self._desk)
        except ApiError:
            # The page must come just when the storage does not; its failures are counted where they happen.
            return
        for band, count in quota_bands((share.used, share.keys) for share in shares).items():
            self._metrics.keys.labels(band).set(count)
        self._metrics.quota_used.clear()
        for share in heapq.nlargest(self._quota_top, shares):
            self._metrics.quota_used.labels(share.key_id, share.tier).set(share.used)
