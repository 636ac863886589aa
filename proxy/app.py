"""The proxy, put together: `stores`, `house` and this alone build anything. Everyone else is handed what it needs.

`serve` is the whole life of the server; `live` is the same without the process around it. `open_desk` is the part that
the command line needs when no server runs.
"""

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from proxy import idempotency as idempotency_keys
from proxy import listeners, memory, once, root_secret, sockets, tls
from proxy.admin.callers import SocketCallers
from proxy.admin.desk import Desk
from proxy.admin.pages import Place
from proxy.admission.concurrency import Leases
from proxy.admission.explain import Explain, Knowledge
from proxy.admission.meters import Meters
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Cells
from proxy.admission.replay import Forgets, Purge
from proxy.admission.shared import SharedLimits
from proxy.body import reading
from proxy.clock import Clock, SystemClock
from proxy.connections import Places
from proxy.console import files
from proxy.console.front import Console, is_on
from proxy.disk import Disk
from proxy.door import Door
from proxy.edge import DIRECT
from proxy.house import Ground, House, admin_edge, build, console, desk_of
from proxy.keeper import Keeper, Trade, keep_log
from proxy.metrics import Metrics, watch_clock, watch_loop
from proxy.nonces import open_nonces
from proxy.policy.load import load_policy
from proxy.policy.watch import PolicyWatch, read
from proxy.process import calm_collector, harden
from proxy.record import CommitWatch, ValkeyWatch
from proxy.reloads import Reloads
from proxy.responses import purge
from proxy.settings import Proxy
from proxy.store import address
from proxy.store.notices import listen
from proxy.store.retention import Retention
from proxy.store.writer import Unobserved
from proxy.stores import Stores, open_stores
from proxy.tls import Certificate, SecureServer
from proxy.upstream import Sidecar, Upstreams
from sidecar.jsonlog import JsonLog
from sidecar.notify import Notifier
from sidecar.telemetry import opened

# The operator's own connections, to either admin listener.
ADMIN_CONNECTIONS: Final = 64


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


async def serve(settings: Proxy, log: JsonLog) -> None:
    """Run the server until SIGTERM or SIGINT.

    Raises what the operator must mend first: ConfigInvalidError, ListenError, SecretFileError, SchemaError,
    StorageError, StorageLockedError, TlsFileError.
    """
    harden(log)
    calm_collector()
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.tell)
    notifier = Notifier(os.environ, log)

    def hang_up() -> None:
        notifier.rereading()
        stop.hang_up()

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    await live(settings, log, stop, notifier)


async def live(settings: Proxy, log: JsonLog, stop: Stop, notifier: Notifier) -> None:
    """The life of the server, in order. Raises what `serve` does."""
    clock = SystemClock()
    policies = Path(settings.policies)
    first = await asyncio.to_thread(read, policies)
    certificate = await asyncio.to_thread(Certificate, settings.listen.tls) if settings.listen.tls else None
    release = await asyncio.to_thread(version, "tollhouse")
    metrics = _metrics(settings, clock, release)
    policy = PolicyWatch(policies, first, Reloads(metrics, clock, log, notifier.reread))
    async with contextlib.AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(opened(os.environ, "tollhouse-proxy", log))
        public, admin, admin_unix = await listeners.bind(settings, stack)
        stores = await stack.enter_async_context(open_stores(settings, clock, CommitWatch(metrics, log)))
        root = await root_secret.of_server(settings, stores.keys, log)
        upstreams = Upstreams([Sidecar(upstream, settings.timeouts, log) for upstream in settings.upstreams])
        await stack.enter_async_context(upstreams)
        await _keep_books(settings, stores, upstreams, stack, clock=clock, log=log)
        shared = await _shared(stores, ValkeyWatch(metrics, log), stack)
        port = public.getsockname()[1]
        nonces = await stack.enter_async_context(open_nonces(settings, stores.nonces, clock, log, shared=stores.shared))
        ground = Ground(settings, policy, stores, root, upstreams, nonces, shared, port, metrics, clock, log, tracer)
        house = build(ground)
        place = Place(
            release=release,
            host=settings.listen.host,
            port=port,
            admin_host=settings.admin.host,
            admin_port=admin.getsockname()[1],
            boot_id=stores.boot_id,
            tls=certificate is not None,
        )
        pages = await _console(house, ground, stack)
        for listening, callers in ((admin, house.by_key), (admin_unix, SocketCallers())):
            edge = admin_edge(house, ground, place, callers, pages)
            door = Door(edge.welcome, Places(ADMIN_CONNECTIONS), DIRECT)
            await stack.enter_async_context(listeners.listening(edge, door, listening))
        for name, work in _works(ground, house, nonces, stop):
            await stack.enter_async_context(_beside(work, name))
        outer: socket.socket | SecureServer = public
        if certificate is not None:
            await stack.enter_async_context(_beside(tls.watch(certificate, stop.renew, log), "certificate"))
            outer = SecureServer(public, house.door, certificate.context, settings.limits.head_timeout_s)
        await house.key_watch.begin()
        await stack.enter_async_context(_beside(house.key_watch.run(), "key watch"))
        await stack.enter_async_context(_beside(listen(settings.database, house.key_watch.tell), "key notices"))
        server = await stack.enter_async_context(listeners.listening(house.edge, house.door, outer))
        _tell_ready(ground, place)
        if certificate is None and not sockets.is_loopback(settings.listen.host):
            log.warning("plain_http", host=settings.listen.host, hint="Keys travel unencrypted: see listen.tls.")
        notifier.ready(f"Serving {settings.listen.host}:{port}.")
        await stack.enter_async_context(_beside(notifier.beat(lambda: True), "watchdog"))
        await stop.told.wait()
        notifier.stopping()
        await _drain(house, server, settings.timeouts.drain_s, log, stop)


@contextlib.asynccontextmanager
async def open_desk(settings: Proxy) -> AsyncIterator[Desk]:
    """The actions' desk on the database itself, for when no server runs. Raises what `serve` does."""
    clock = SystemClock()
    policy = await asyncio.to_thread(load_policy, Path(settings.policies))
    async with open_stores(settings, clock, Unobserved()) as stores:
        meters = Meters(Cells(clock), Cells(clock), Leases(), QuotaBook(stores.ledger, clock))
        explain = Explain(lambda: policy, meters, clock, Knowledge(lambda _model: None, None, reading(settings.limits)))
        smith = functools.partial(root_secret.keysmith, settings, stores.keys)
        yield desk_of(stores, lambda: policy, clock, _unwatched, explain, smith=smith)


def _metrics(settings: Proxy, clock: Clock, release: str) -> Metrics:
    registry = CollectorRegistry()
    if address.is_file(settings.database):
        registry.register(Disk(address.file_of(settings.database).absolute().parent))
    return Metrics(clock, registry, release)


async def _unwatched() -> None:
    """No server runs that would have to hear of a change; one on the same Postgres asks for itself."""


async def _keep_books(
    settings: Proxy,
    stores: Stores,
    upstreams: Upstreams,
    stack: contextlib.AsyncExitStack,
    *,
    clock: Clock,
    log: JsonLog,
) -> None:
    """Settle what dead processes left, before anybody is served, and go on looking after the ledger."""
    trade = Trade(stores.boots, stores.ledger, upstreams.sidecars, clock, log, stores.shared)
    keeper = Keeper(stores.boot_id, trade)
    await keeper.begin()
    stack.callback(keeper.end)
    await stack.enter_async_context(_beside(keeper.run(), "keeper"))
    if (months := settings.database.retention_months) is not None:
        forgetting = keep_log(Retention(stores.writer, months), clock, log)
        await stack.enter_async_context(_beside(forgetting, "old requests"))


def _works(
    ground: Ground, house: House, nonces: Forgets, stop: Stop
) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
    """What goes on beside the requests, for ever; each is made as it is begun."""
    settings, stores, metrics, clock, log = ground.settings, ground.stores, ground.metrics, ground.clock, ground.log
    yield "event loop lag", watch_loop(metrics.loop_lag)
    yield "clock", watch_clock(clock, metrics.clock_steps, log)
    yield "purge", purge(stores.responses, clock)
    yield "policy watch", ground.policy.run(stop.reread)
    yield "nonces", once.purge(nonces, Purge(nonces, settings.replay, clock), metrics.replay_entries)
    yield "idempotency keys", idempotency_keys.purge(stores.idempotency, clock)
    yield "memory", memory.watch(house.memory, log)


def _tell_ready(ground: Ground, place: Place) -> None:
    settings, policy = ground.settings, ground.policy()
    ground.log.info(
        "ready",
        host=place.host,
        port=place.port,
        admin_host=place.admin_host,
        admin_port=place.admin_port,
        admin_socket=settings.admin.socket,
        boot_id=place.boot_id,
        revision=policy.revision,
        tiers=len(policy.tiers),
        upstreams=len(settings.upstreams),
        pid=os.getpid(),
    )


async def _console(house: House, ground: Ground, stack: contextlib.AsyncExitStack) -> Console | None:
    """The console, where there is to be one, and the samples that it draws."""
    if not is_on(ground.settings.admin):
        return None
    await stack.enter_async_context(_beside(house.samples.run(), "samples"))
    return console(house, ground, await asyncio.to_thread(files.load))


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
    house.feed.close()
