"""The door of a listener: each new connection gets a place, waits for one, or is told that there is none.

Who is refused gets an error object like everyone else: the answer is written, and what the client still sends is read
away for a moment, since closing on unread bytes would take the answer with it. Nothing is parsed here.
"""

import asyncio
import resource
from collections.abc import Callable
from typing import Final, cast

from typing_extensions import override

from proxy.addresses import Addresses, neighbourhood
from proxy.clock import Clock
from proxy.connections import FILE_RESERVE, FILES_EACH, Full, Place, Places, fitting
from proxy.memory import Memory, overloaded
from proxy.metrics import Metrics
from proxy.settings import Limits
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError

# How long an address at its bound waits for a seat.
WAIT_S: Final = 2.0
# How long a refused client may take to read the answer, and how many may do so at once.
PARTING_S: Final = 1.0
MOST_PARTING: Final = 32
# A flood is told once in this time for each reason.
TELL_EVERY_S: Final = 60.0
_HINTS: Final = {
    Full.CONNECTIONS: "limits.max_connections is reached.",
    Full.ADDRESS: "limits.max_connections_per_address is reached by connections without a valid key.",
    Full.MEMORY: "limits.memory_for_connections_percent is reached.",
}


class Refused:
    """Counts the refused, and tells of them. Mutable: `_told`, when each reason was told; `_since`, how many since."""

    def __init__(self, metrics: Metrics, log: JsonLog, clock: Clock) -> None:
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._told: dict[Full, float] = {}
        self._since = dict.fromkeys(Full, 0)

    def note(self, why: Full) -> None:
        self._metrics.refused_connections.labels(why.value).inc()
        self._since[why] += 1
        now_s = self._clock.monotonic()
        if now_s - self._told.get(why, -TELL_EVERY_S) >= TELL_EVERY_S:
            self._log.warning("connections_refused", reason=why.value, count=self._since[why], hint=_HINTS[why])
            self._told[why] = now_s
            self._since[why] = 0


class Door:
    """A listener's door; a factory of protocols. `refused` of None tells nobody.

    `welcome` makes the protocol that serves a connection that has a place. Mutable: `_waiting` and `_parting`, the
    connections that have no other owner.
    """

    def __init__(
        self,
        welcome: Callable[[Place], asyncio.Protocol],
        places: Places,
        addresses: Addresses,
        refused: Refused | None = None,
    ) -> None:
        self.welcome = welcome
        self._places = places
        self._addresses = addresses
        self._refused = refused
        self._waiting: set[Doorway] = set()
        self._parting: set[Doorway] = set()

    def __call__(self) -> "Doorway":
        return Doorway(self)

    def place(self, peer: object, called: Callable[[], None]) -> Place | Full:
        host = str(peer[0]) if isinstance(peer, tuple) and peer else None
        counted = None if host is None or self._addresses.trusts(host) else neighbourhood(host)
        return self._places.take(counted, called)

    @property
    def may_part(self) -> bool:
        """Whether there is room for one more to part well."""
        return len(self._parting) < MOST_PARTING

    def wait(self, doorway: "Doorway") -> None:
        self._waiting.add(doorway)

    def refuse(self, doorway: "Doorway", why: Full) -> bool:
        """Count a refusal, and tell whether it may part well."""
        if self._refused is not None:
            self._refused.note(why)
        if self.may_part:
            self._parting.add(doorway)
        return doorway in self._parting

    def go(self, doorway: "Doorway") -> None:
        """It neither waits nor parts any more."""
        self._waiting.discard(doorway)
        self._parting.discard(doorway)

    def close(self) -> None:
        """Let go of whoever stands there."""
        for doorway in self._waiting | self._parting:
            doorway.abort()


class Doorway(asyncio.Protocol):
    """One connection at the door.

    Mutable: `_transport`; `_verdict`, its place or why it has none, until it enters or leaves; `_early`, what it said
    while it waited; `_timer`, until that is over.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._verdict: Place | Full | None = None
        self._early = b""
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, peer: object) -> bool:
        """Look for a place before the handshake; whether it is worth one."""
        self._verdict = self._door.place(peer, self._called)
        if isinstance(self._verdict, Full) and not self._door.may_part:
            self._door.refuse(self, self._verdict)
            return False
        return True

    def give_up(self) -> None:
        """There was no handshake."""
        self.connection_lost(None)

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's methods and not its classes, so there is nothing to check here.
        real = self._transport = cast("asyncio.Transport", transport)
        if self._verdict is None:
            self._verdict = self._door.place(real.get_extra_info("peername"), self._called)
        if isinstance(self._verdict, Full):
            self._part(real, self._verdict)
        elif self._verdict.seated:
            self._called()
        else:
            self._door.wait(self)
            self._timer = asyncio.get_running_loop().call_later(WAIT_S, self._waited, real)

    @override
    def data_received(self, data: bytes) -> None:
        # Not paused from the start: uvloop begins to read after `connection_made`. One piece is what it may read.
        if isinstance(self._verdict, Place) and self._transport is not None:
            self._early += data
            self._transport.pause_reading()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        verdict = self._stop()
        if isinstance(verdict, Place):
            verdict.leave()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _called(self) -> None:
        """It has a seat. During a handshake that is only good to know."""
        if self._transport is None:
            return
        place = self._stop()
        if isinstance(place, Place):
            protocol = self._door.welcome(place)
            self._transport.set_protocol(protocol)
            protocol.connection_made(self._transport)
            if self._early:
                protocol.data_received(self._early)
                self._transport.resume_reading()

    def _waited(self, transport: asyncio.Transport) -> None:
        place = self._stop()
        if isinstance(place, Place):
            place.leave()
            if self._early:
                transport.resume_reading()
            self._part(transport, Full.ADDRESS)

    def _part(self, transport: asyncio.Transport, why: Full) -> None:
        linger = self._door.refuse(self, why)
        transport.write(ANSWER)
        if linger and transport.can_write_eof():
            transport.write_eof()
            self._timer = asyncio.get_running_loop().call_later(PARTING_S, transport.abort)
        else:
            transport.close()

    def _stop(self) -> Place | Full | None:
        """The end of standing there; what the verdict was."""
        self._door.go(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        verdict, self._verdict = self._verdict, None
        return verdict


def public_door(
    welcome: Callable[[Place], asyncio.Protocol],
    addresses: Addresses,
    limits: Limits,
    memory: Memory,
    *,
    metrics: Metrics,
    clock: Clock,
    log: JsonLog,
) -> Door:
    """The door of the public listener, as wide as the settings and the process' open files allow."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = fitting(limits.max_connections, files)
    if most < limits.max_connections:
        wanted = limits.max_connections * FILES_EACH + FILE_RESERVE
        hint = f"limits.max_connections takes {wanted} open files (ulimit -n), and there may be {files}."
        log.warning("few_files", limit=most, hint=hint)
    places = Places(most, limits.max_connections_per_address, memory.no_connections)
    metrics.connections.set_function(lambda: places.taken)
    return Door(welcome, places, addresses, Refused(metrics, log, clock))


def _answer(error: ApiError) -> bytes:
    body = error.body()
    headers = {
        "server": "tollhouse",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers(),
    }
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ANSWER: Final = _answer(overloaded())
