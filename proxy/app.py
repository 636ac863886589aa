"""The proxy, put together: with `stores` the only module that builds anything. Everyone else is handed what it needs.

`serve` is the whole life of the server; `live` is the same without the process around it. `open_desk` is the part that
the command line needs when no server runs.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from proxy import idempotency as idempotency_keys
from proxy import listeners, memory, once, sockets, tls
from proxy.addresses import Addresses
from proxy.admin.callers import Callers, KeyCallers, SocketCallers
from proxy.admin.desk import Desk
from proxy.admin.listener import AdminFront
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
from proxy.admission.replay import NonceStore, Purge, Replay, authorities
from proxy.admission.shared import SharedLimits
from proxy.body import reading
from proxy.clock import Clock, SystemClock
from proxy.connections import Places
from proxy.door import Door, public_door
from proxy.edge import DIRECT, EdgeServer
from proxy.idempotency import Idempotency
from proxy.identity import Identify
from proxy.keeper import Keeper, Trade, keep_log
from proxy.keywatch import KeyWatch
from proxy.memory import Memory
from proxy.metrics import Metrics, QueueMetrics, watch_clock, watch_loop
from proxy.nonces import open_nonces
from proxy.once import Once
from proxy.pipeline import Pipeline
from proxy.policy.load import load_policy
from proxy.policy.schema import Policy
from proxy.policy.watch import PolicyWatch, read
from proxy.process import harden
from proxy.record import CommitWatch, Record, ValkeyWatch
from proxy.reloads import Reloads
from proxy.responses import Responses, purge
from proxy.routes import Front
from proxy.running import Running
from proxy.settings import Proxy
from proxy.store.notices import listen
from proxy.store.recordings import Recordings
from proxy.store.refusals import Refusals
from proxy.store.requestlog import RequestLog
from proxy.store.retention import Retention
from proxy.store.writer import Unobserved
from proxy.stores import Stores, open_stores
from proxy.tls import Certificate, SecureServer
from proxy.upstream import Sidecar, Upstreams
from sidecar.jsonlog import JsonLog

FAILED: Final = 1
# The operator's own connections, to either admin listener.
ADMIN_CONNECTIONS: Final = 64
# For how long a quota is taken as read that other processes move too.
FRESH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Stop:
    """How a server is told to end: once to drain, again to hurry; and to read again: policies, and its certificate."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    reread: asyncio.Event = field(default_factory=asyncio.Event)
    renew: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        (self.hurry if self.told.is_set() else self.told).set()

    def hang_up(self) -> None:
        self.reread.set()
        self.renew.set()


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


async def serve(settings: Proxy, log: JsonLog) -> int:
    """Run the server until SIGTERM or SIGINT; the exit code.

    Raises what the operator must mend first: ConfigInvalidError, SecretFileError, SchemaError, StorageError,
    StorageLockedError, TlsFileError.
    """
    harden(log)
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.tell)
    loop.add_signal_handler(signal.SIGHUP, stop.hang_up)
    try:
        await live(settings, log, stop)
    except sockets.ListenError as exc:
        log.error("listen_failed", hint=str(exc))
        return FAILED
    return 0


async def live(settings: Proxy, log: JsonLog, stop: Stop) -> None:
    """The life of the server, in order. Raises what `serve` does, and ListenError."""
    clock = SystemClock()
    policies = Path(settings.policies)
    first = await asyncio.to_thread(read, policies)
    certificate = await asyncio.to_thread(Certificate, settings.listen.tls) if settings.listen.tls else None
    release = await asyncio.to_thread(version, "tollhouse")
    metrics = Metrics(clock, CollectorRegistry(), release)
    policy = PolicyWatch(policies, first, Reloads(metrics, clock, log))
    async with contextlib.AsyncExitStack() as stack:
        public, admin, admin_unix = await listeners.bind(settings, stack)
        stores = await stack.enter_async_context(open_stores(settings, clock, CommitWatch(metrics, log)))
        upstreams = Upstreams([Sidecar(upstream, settings.timeouts, log) for upstream in settings.upstreams])
        await stack.enter_async_context(upstreams)
        keeper = Keeper(
            stores.boot_id, Trade(stores.boots, stores.ledger, upstreams.sidecars, clock, log, stores.shared)
        )
        await keeper.begin()
        stack.callback(keeper.end)
        await stack.enter_async_context(_beside(keeper.run(), "keeper"))
        if (months := settings.database.retention_months) is not None:
            forgetting_old = keep_log(Retention(stores.writer, months), clock, log)
            await stack.enter_async_context(_beside(forgetting_old, "old requests"))
        shared = await _shared(stores, ValkeyWatch(metrics, log), stack)
        port = public.getsockname()[1]
        nonces = await stack.enter_async_context(open_nonces(settings, stores.nonces, clock, log, shared=stores.shared))
        house = build(
            settings, policy, stores, upstreams, nonces, shared=shared, port=port, metrics=metrics, clock=clock, log=log
        )
        place = Place(
            release=release,
            host=settings.listen.host,
            port=port,
            admin_host=settings.admin.host,
            admin_port=admin.getsockname()[1],
            boot_id=stores.boot_id,
            tls=certificate is not None,
        )
        for listening, callers in ((admin, house.by_key), (admin_unix, SocketCallers())):
            edge = _admin_edge(house, settings, place, callers, clock=clock, log=log)
            door = Door(edge.welcome, Places(ADMIN_CONNECTIONS), DIRECT)
            await stack.enter_async_context(listeners.listening(edge, door, listening))
        await stack.enter_async_context(_beside(watch_loop(metrics.loop_lag), "event loop lag"))
        await stack.enter_async_context(_beside(watch_clock(clock, metrics.clock_steps, log), "clock"))
        await stack.enter_async_context(_beside(purge(stores.responses, clock), "purge"))
        await stack.enter_async_context(_beside(policy.run(stop.reread), "policy watch"))
        forgetting = once.purge(nonces, Purge(nonces, settings.replay, clock), metrics.replay_entries)
        await stack.enter_async_context(_beside(forgetting, "nonces"))
        purging = idempotency_keys.purge(stores.idempotency, clock)
        await stack.enter_async_context(_beside(purging, "idempotency keys"))
        await stack.enter_async_context(_beside(memory.watch(house.memory, log), "memory"))
        outer: socket.socket | SecureServer = public
        if certificate is not None:
            await stack.enter_async_context(_beside(tls.watch(certificate, stop.renew, log), "certificate"))
            outer = SecureServer(public, house.door, certificate.context, settings.limits.head_timeout_s)
        await house.key_watch.begin()
        await stack.enter_async_context(_beside(house.key_watch.run(), "key watch"))
        await stack.enter_async_context(_beside(listen(settings.database, house.key_watch.tell), "key notices"))
        server = await stack.enter_async_context(listeners.listening(house.edge, house.door, outer))
        log.info(
            "ready",
            host=place.host,
            port=place.port,
            admin_host=place.admin_host,
            admin_port=place.admin_port,
            admin_socket=settings.admin.socket,
            boot_id=stores.boot_id,
            revision=policy().revision,
            tiers=len(policy().tiers),
            upstreams=len(settings.upstreams),
            pid=os.getpid(),
        )
        if certificate is None and not sockets.is_loopback(settings.listen.host):
            log.warning("plain_http", host=settings.listen.host, hint="Keys travel unencrypted: see listen.tls.")
        await stop.told.wait()
        await _drain(house, server, settings.timeouts.drain_s, log, stop)


@contextlib.asynccontextmanager
async def open_desk(settings: Proxy) -> AsyncIterator[Desk]:
    """The actions' desk on the database itself, for when no server runs. Raises what `serve` does."""
    clock = SystemClock()
    policy = await asyncio.to_thread(load_policy, Path(settings.policies))
    async with open_stores(settings, clock, Unobserved()) as stores:
        meters = Meters(Cells(clock), Cells(clock), Leases(), QuotaBook(stores.ledger, clock))
        explain = Explain(lambda: policy, meters, clock, Knowledge(lambda _model: None, None, reading(settings.limits)))
        yield _desk(stores, lambda: policy, clock, _unwatched, explain)


async def _unwatched() -> None:
    """No server runs that would have to hear of a change; one on the same Postgres asks for itself."""


def build(
    settings: Proxy,
    policy: PolicyWatch,
    stores: Stores,
    upstreams: Upstreams,
    nonces: NonceStore,
    *,
    shared: SharedLimits | None,
    port: int,
    metrics: Metrics,
    clock: Clock,
    log: JsonLog,
) -> House:
    """The rooms, each handed what it needs. Nothing starts here. `port`: where the public listener is bound."""
    limits, timeouts = settings.limits, settings.timeouts
    failures = Allowance(clock, Rate(limits.auth_failures_per_minute))
    identify = Identify(stores.keys, stores.smith, policy, failures, clock=clock, log=log)
    quotas = QuotaBook(stores.ledger, clock, FRESH_S if stores.shared else None)
    meters = Meters(Cells(clock), Cells(clock), Leases(), quotas)
    storage_s = timeouts.storage_s
    admission = Admission(
        policy,
        meters,
        stores.ledger,
        clock,
        storage_s=storage_s,
        queue=QueueMetrics(metrics),
        refusals=RefusalLog(Refusals(stores.writer, stores.boot_id), clock),
        fleet=None if shared is None else Together(shared, Shown(meters.requests, meters.tokens)),
        load=upstreams.load,
    )
    record = Record(metrics, stores.keys, log, clock)
    responses = Responses(policy, stores.responses, clock, most_bytes=limits.max_body_bytes, storage_s=storage_s)
    replay = Replay(
        policy,
        nonces,
        settings.replay,
        clock,
        identify.failed,
        authorities=authorities(settings.public_authorities, settings.listen.host, port),
        storage_s=storage_s,
    )
    idempotency = Idempotency(policy, stores.idempotency, stores.idempotency_secret, clock, storage_s=storage_s)
    abuse = Abuse(policy, metrics, clock, log)
    running = Running()
    key_watch = KeyWatch(
        stores.generations, stores.keys, identify, running, checked=metrics.keys_checked.set, clock=clock, log=log
    )
    pipeline = Pipeline(
        identify,
        admission,
        upstreams,
        responses,
        record,
        abuse=abuse,
        once=Once(replay, idempotency),
        running=running,
        clock=clock,
        log=log,
        limits=limits,
        storage_s=storage_s,
    )
    addresses = Addresses(settings.listen.trusted_proxies)
    front = Front(
        pipeline,
        upstreams,
        admission.allows,
        responses,
        policy=policy,
        record=record,
        metrics=metrics,
        clock=clock,
        limits=limits,
        timeouts=timeouts,
        addresses=addresses,
    )

    knowledge = Knowledge(upstreams.find, lambda call: upstreams.choose(call.model).count(call), reading(limits))
    explain = Explain(policy, meters, clock, knowledge, lambda: 1 if shared is None else shared.share)
    desk = _desk(stores, policy, clock, key_watch.look, explain)
    pages = Pages(
        desk,
        upstreams,
        stores.writer,
        metrics=metrics,
        clock=clock,
        in_progress=lambda: front.in_progress,
        policy_problems=lambda: policy.problems,
        storage_s=timeouts.storage_s,
    )
    spare = Memory(
        requests_percent=limits.memory_for_requests_percent, connections_percent=limits.memory_for_connections_percent
    )
    edge = EdgeServer(front.handle, front.refuse, limits, addresses=addresses, overload=spare.refusal)
    door = public_door(edge.welcome, addresses, limits, spare, metrics=metrics, clock=clock, log=log)
    by_key = KeyCallers(identify, abuse.came, settings.admin.api_from)
    return House(front, edge, door, spare, desk, pages, by_key, key_watch)


def _desk(
    stores: Stores,
    policy: Callable[[], Policy],
    clock: Clock,
    changed: Callable[[], Awaitable[None]],
    explain: Explain,
) -> Desk:
    return Desk(
        stores.accounts,
        stores.keys,
        stores.ledger,
        stores.audit,
        RequestLog(stores.writer),
        Recordings(stores.writer),
        stores.smith,
        policy,
        clock,
        changed,
        explain,
    )


def _admin_edge(
    house: House, settings: Proxy, place: Place, callers: Callers, *, clock: Clock, log: JsonLog
) -> EdgeServer:
    limits, timeouts = settings.limits, settings.timeouts
    front = AdminFront(house.pages, house.desk, place, callers, clock=clock, log=log, limits=limits, timeouts=timeouts)
    return EdgeServer(front.handle, front.refuse, limits, same_user=isinstance(callers, SocketCallers))


async def _shared(stores: Stores, watch: ValkeyWatch, stack: contextlib.AsyncExitStack) -> SharedLimits | None:
    """What all proxies count together, where there is a Valkey to count in."""
    if stores.valkey is None:
        return None
    return await stack.enter_async_context(SharedLimits(stores.valkey, stores.boot_id, watch.told))


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _drain(house: House, server: listeners.Closes, limit_s: float, log: JsonLog, stop: Stop) -> None:
    """Take nothing new, and let what runs end."""
    log.info("draining", requests=house.front.in_progress, drain_s=limit_s)
    house.pages.draining = True
    server.close()
    house.edge.wind_down()
    await house.front.drain(limit_s, stop.hurry)
