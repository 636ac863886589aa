"""The rooms of the proxy, each handed what it needs. Nothing starts here; the life of what is built is `app`'s."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from proxy.addresses import Addresses
from proxy.admin.callers import Callers, KeyCallers, SocketCallers
from proxy.admin.desk import Desk
from proxy.admin.listener import AdminFront, Extra
from proxy.admin.pages import Pages, Place
from proxy.admission.abuse import Abuse
from proxy.admission.concurrency import Leases
from proxy.admission.explain import Explain, Knowledge
from proxy.admission.fleet import Shown, Together
from proxy.admission.gate import Admission
from proxy.admission.meters import Meters
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Allowance, Cells, Rate
from proxy.admission.refusal_log import RefusalLog
from proxy.admission.replay import NonceStore, Replay, authorities
from proxy.admission.shared import SharedLimits
from proxy.body import reading
from proxy.clock import Clock
from proxy.console.feed import Feed
from proxy.console.files import File
from proxy.console.front import Console, Rooms
from proxy.console.samples import Samples
from proxy.console.trials import Trials
from proxy.door import Door, public_door
from proxy.edge import EdgeServer
from proxy.idempotency import Idempotency
from proxy.identity import Identify, Keysmith
from proxy.keywatch import KeyWatch
from proxy.memory import Memory
from proxy.metrics import Metrics, QueueMetrics
from proxy.once import Once
from proxy.pipeline import Pipeline
from proxy.policy.schema import Policy
from proxy.policy.watch import PolicyWatch
from proxy.record import Record
from proxy.responses import Responses
from proxy.routes import Front
from proxy.running import Running
from proxy.secrets import IDEMPOTENCY, RootSecret
from proxy.settings import Proxy
from proxy.store.recordings import Recordings
from proxy.store.refusals import Refusals
from proxy.store.requestlog import RequestLog
from proxy.stores import Stores
from proxy.telemetry import Telemetry
from proxy.upstream import Upstreams
from sidecar.jsonlog import JsonLog
from sidecar.spans import Tracer

# For how long a quota is taken as read that other processes move too.
FRESH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What the house is built on.

    `port`: where the public listener is bound; `shared`: what all proxies count; `tracer`: where spans go, if anywhere.
    """

    settings: Proxy
    policy: PolicyWatch
    stores: Stores
    root: RootSecret
    upstreams: Upstreams
    nonces: NonceStore
    shared: SharedLimits | None
    port: int
    metrics: Metrics
    clock: Clock
    log: JsonLog
    tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class House:
    """The built proxy."""

    front: Front
    edge: EdgeServer
    door: Door
    memory: Memory
    desk: Desk
    pages: Pages
    by_key: KeyCallers
    key_watch: KeyWatch
    feed: Feed
    samples: Samples


def build(ground: Ground) -> House:
    settings, stores, limits = ground.settings, ground.stores, ground.settings.limits
    policy, metrics, clock, log = ground.policy, ground.metrics, ground.clock, ground.log
    failures = Allowance(clock, Rate(limits.auth_failures_per_minute))
    smith = Keysmith(ground.root)
    identify = Identify(stores.keys, smith, policy, failures, clock=clock, log=log)
    quotas = QuotaBook(stores.ledger, clock, FRESH_S if stores.shared else None)
    meters = Meters(Cells(clock), Cells(clock), Leases(), quotas)
    abuse = Abuse(policy, metrics, clock, log)
    running = Running()
    key_watch = KeyWatch(
        stores.generations, stores.keys, identify, running, checked=metrics.keys_checked.set, clock=clock, log=log
    )
    addresses, feed = Addresses(settings.listen.trusted_proxies), Feed()
    admission = _admission(ground, meters)
    front = _front(ground, identify, admission, abuse=abuse, running=running, addresses=addresses, feed=feed)
    ground.metrics.in_progress.set_function(lambda: front.in_progress)
    desk = desk_of(stores, policy, clock, key_watch.look, _explain(ground, meters), smith=_at_hand(smith))
    pages = Pages(
        desk,
        ground.upstreams,
        stores.writer,
        metrics=metrics,
        clock=clock,
        in_progress=lambda: front.in_progress,
        policy_problems=lambda: policy.problems,
        storage_s=settings.timeouts.storage_s,
        quota_top=settings.metrics.quota_top,
    )
    spare = Memory(
        requests_percent=limits.memory_for_requests_percent, connections_percent=limits.memory_for_connections_percent
    )
    edge = EdgeServer(front.handle, front.refuse, limits, addresses=addresses, overload=spare.refusal)
    door = public_door(edge.welcome, addresses, limits, spare, metrics=metrics, clock=clock, log=log)
    by_key = KeyCallers(identify, abuse.came, settings.admin.api_from)
    samples = Samples(pages, lambda: ground.upstreams.sidecars, clock)
    return House(front, edge, door, spare, desk, pages, by_key, key_watch, feed, samples)


def _admission(ground: Ground, meters: Meters) -> Admission:
    stores, shared = ground.stores, ground.shared
    return Admission(
        ground.policy,
        meters,
        stores.ledger,
        ground.clock,
        storage_s=ground.settings.timeouts.storage_s,
        queue=QueueMetrics(ground.metrics),
        refusals=RefusalLog(Refusals(stores.writer, stores.boot_id), ground.clock),
        fleet=None if shared is None else Together(shared, Shown(meters.requests, meters.tokens)),
        load=ground.upstreams.load,
    )


def _front(
    ground: Ground,
    identify: Identify,
    admission: Admission,
    *,
    abuse: Abuse,
    running: Running,
    addresses: Addresses,
    feed: Feed,
) -> Front:
    """The public listener's, and the hallway behind it."""
    stores, clock, limits, timeouts = ground.stores, ground.clock, ground.settings.limits, ground.settings.timeouts
    traces = None if ground.tracer is None else Telemetry(ground.tracer)
    record = Record(ground.metrics, stores.keys, ground.log, clock, watch=feed, traces=traces)
    responses = Responses(
        ground.policy, stores.responses, clock, most_bytes=limits.max_body_bytes, storage_s=timeouts.storage_s
    )
    pipeline = Pipeline(
        identify,
        admission,
        ground.upstreams,
        responses,
        record,
        abuse=abuse,
        once=_once(ground, identify),
        running=running,
        clock=clock,
        log=ground.log,
        limits=limits,
        storage_s=timeouts.storage_s,
    )
    return Front(
        pipeline,
        ground.upstreams,
        admission.allows,
        responses,
        policy=ground.policy,
        record=record,
        clock=clock,
        limits=limits,
        timeouts=timeouts,
        addresses=addresses,
        traces=traces,
    )


def _once(ground: Ground, identify: Identify) -> Once:
    settings, stores, storage_s = ground.settings, ground.stores, ground.settings.timeouts.storage_s
    replay = Replay(
        ground.policy,
        ground.nonces,
        settings.replay,
        ground.clock,
        identify.failed,
        authorities=authorities(settings.public_authorities, settings.listen.host, ground.port),
        storage_s=storage_s,
    )
    idempotency = Idempotency(
        ground.policy, stores.idempotency, ground.root.derive(IDEMPOTENCY), ground.clock, storage_s=storage_s
    )
    return Once(replay, idempotency)


def _explain(ground: Ground, meters: Meters) -> Explain:
    upstreams, shared = ground.upstreams, ground.shared
    counted = reading(ground.settings.limits)
    knowledge = Knowledge(upstreams.find, lambda call: upstreams.choose(call.model).count(call), counted)
    return Explain(ground.policy, meters, ground.clock, knowledge, lambda: 1 if shared is None else shared.share)


def _at_hand(smith: Keysmith) -> Callable[[], Awaitable[Keysmith]]:
    async def given() -> Keysmith:
        return smith

    return given


def desk_of(
    stores: Stores,
    policy: Callable[[], Policy],
    clock: Clock,
    changed: Callable[[], Awaitable[None]],
    explain: Explain,
    *,
    smith: Callable[[], Awaitable[Keysmith]],
) -> Desk:
    """The operator's, whether a server runs or not."""
    return Desk(
        stores.accounts,
        stores.keys,
        stores.ledger,
        stores.audit,
        RequestLog(stores.writer),
        Recordings(stores.writer),
        smith,
        policy,
        clock,
        changed,
        explain,
    )


def console(house: House, ground: Ground, files: Mapping[str, File]) -> Console:
    """The pages on the admin listeners."""
    settings = ground.settings
    names = {urlsplit(f"//{name}").hostname or "" for name in (settings.admin.host, *settings.public_authorities)}
    rooms = Rooms(
        files=files,
        samples=house.samples,
        feed=house.feed,
        trials=Trials(settings.admin.socket, ground.clock, ground.log),
        policy=ground.policy,
        policies=Path(settings.policies),
        public=house.front.handle,
        names=frozenset(names),
        write_s=settings.timeouts.client_write_s,
    )
    return Console(rooms)


def admin_edge(house: House, ground: Ground, place: Place, callers: Callers, extra: Extra | None) -> EdgeServer:
    """One admin listener's."""
    limits, timeouts = ground.settings.limits, ground.settings.timeouts
    front = AdminFront(
        house.pages,
        house.desk,
        place,
        callers,
        clock=ground.clock,
        log=ground.log,
        limits=limits,
        timeouts=timeouts,
        extra=extra,
    )
    return EdgeServer(front.handle, front.refuse, limits, same_user=isinstance(callers, SocketCallers))
