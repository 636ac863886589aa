"""Requests and their answers over a Unix socket, one at a time on a connection: as little HTTP as a sidecar needs.

A connection is kept for the next request if its answer came whole, and is looked at before that: one that has ended, or
on which anything was said meanwhile, takes no more. Nothing is ever written twice, so that no request runs twice: one
whose connection ends without an answer is lost. What listens there runs as this user, or as root, or is not spoken to.
"""

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, cast

from typing_extensions import override

from proxy.answers import BrokenOffError, Head, Reading
from proxy.edge import peer_uid

# An answer that is not read as fast as it comes is left in the socket beyond this.
MOST_KEPT_BYTES: Final = 256 * 1024
# What is kept for the next requests, and for how long: much shorter than a sidecar keeps it, so that it is not closed
# there while a request is on its way.
MOST_FREE: Final = 256
FREE_S: Final = 5.0


class AbsentError(ConnectionError):
    """Nobody listens that we would speak to: nothing was sent."""


class Uplink(asyncio.Protocol):
    """A connection, and the request that it has now.

    Mutable: `free_since_s`, when it had its last answer; `_transport`, while it is open; `_events`, what has happened
    to it that the loop does not know yet; `_asked_s`, when the request was sent; `_reading`; `_pieces`, of the body,
    that nobody has taken yet, and `_kept`, their bytes; `_held`, while those are too many; `_error`, why no more will
    come; `_waiter`, for who waits for more, and `_timer`, how long yet; `_over`, for who waits for the end; `_take`,
    what is given each piece as it comes, and `_heard_s`, when one last came then.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._events = select.poll()
        self._asked_s = 0.0
        self.free_since_s = 0.0
        self._reading = Reading()
        self._pieces: list[bytes] = []
        self._kept = 0
        self._held = False
        self._error: BrokenOffError | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._heard_s = 0.0
        self._over: asyncio.Future[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's methods and not its classes, so there is nothing to check here.
        self._transport = cast("asyncio.Transport", transport)
        self._events.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    @override
    def data_received(self, data: bytes) -> None:
        try:
            piece = self._reading.feed(data)
        except BrokenOffError as exc:
            self._fail(exc)
            return
        if piece and self._take is not None and self._waiter is not None and not self._waiter.done():
            self._give(piece, self._take, self._waiter)
            if not self._reading.whole:
                return
        elif piece:
            self._pieces.append(piece)
            self._kept += len(piece)
            if self._kept > MOST_KEPT_BYTES and not self._held and self._transport is not None:
                self._held = True
                self._transport.pause_reading()
        self._wake()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        # From here on its descriptor may be another's.
        self._transport = None
        try:
            self._reading.end()
        except BrokenOffError as broken:
            broken.__cause__ = exc
            self._fail(broken)
        self._wake()

    def ask(self, request: bytes) -> None:
        """Send a request on a connection that is new or free."""
        if self._transport is None:
            raise RuntimeError("a connection is made before it is used")
        self._reading = Reading()
        self._over = None
        self._asked_s = self._loop.time()
        self._transport.write(request)

    @property
    def answered(self) -> bool:
        """Whether the answer is whole and taken, and the connection left open for another."""
        return self._reading.goes_on and self._error is None and not self._pieces and not self._held

    def is_quiet(self) -> bool:
        """Whether the connection is open and nothing has come since the answer, up to this moment."""
        transport = self._transport
        return self.answered and transport is not None and not transport.is_closing() and not self._events.poll(0)

    def over(self) -> asyncio.Future[None]:
        """Done when the answer is whole, or none will come."""
        if self._over is None:
            self._over = self._loop.create_future()
            self._wake()
        return self._over

    async def head(self, limit_s: float) -> Head:
        """Raises BrokenOffError, or TimeoutError `limit_s` after the request was sent."""
        while self._reading.head is None:
            await self._more(self._asked_s + limit_s)
        return self._reading.head

    async def piece(self, limit_s: float) -> bytes:
        """What has come of the body since the last call, at least a byte; empty at its end. Raises as `head` does."""
        while self._error is not None or not self._pieces:
            if self._reading.whole and self._error is None:
                return b""
            await self._more(self._loop.time() + limit_s)
        pieces, self._pieces, self._kept = self._pieces, [], 0
        if self._held and self._transport is not None:
            self._held = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def each(self, take: Callable[[bytes], bool], limit_s: float) -> bool:
        """Give `take` what comes of the body, as it comes, until that says no; whether it did, before the end.

        Raises as `piece` does, and what `take` raises. It is called where the loop reads, without a turn between.
        """
        while piece := await self.piece(limit_s):
            if not take(piece):
                return True
            if self._reading.whole:
                break
            self._take, self._heard_s = take, self._loop.time()
            try:
                if await self._wait(self._heard_s + limit_s, limit_s):
                    return True
            finally:
                self._take = None
        return False

    def close(self) -> None:
        """Break the connection off, whatever comes on it."""
        if self._transport is not None:
            self._transport.abort()

    def _give(self, piece: bytes, take: Callable[[bytes], bool], waiter: asyncio.Future[bool]) -> None:
        self._heard_s = self._loop.time()
        try:
            if not take(piece):
                waiter.set_result(True)
        except Exception as exc:  # noqa: BLE001 - it is raised where the piece is waited for
            waiter.set_exception(exc)

    async def _more(self, until_s: float) -> None:
        if self._error is not None:
            raise self._error
        await self._wait(until_s, 0.0)

    async def _wait(self, until_s: float, silent_s: float) -> bool:
        """Until there is more, or `take` says no: whether that is it. Raises TimeoutError.

        The limit is put off by what is taken meanwhile: there may then be `silent_s` of silence again.
        """
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        self._timer = self._loop.call_at(until_s, self._late, waiter, silent_s)
        try:
            return await waiter
        finally:
            self._timer.cancel()
            self._waiter = None

    def _late(self, waiter: asyncio.Future[bool], silent_s: float) -> None:
        until_s = self._heard_s + silent_s
        if self._take is not None and until_s > self._loop.time():
            self._timer = self._loop.call_at(until_s, self._late, waiter, silent_s)
        elif not waiter.done():
            waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)
        if self._over is not None and not self._over.done() and (self._reading.whole or self._error is not None):
            self._over.set_result(None)

    def _fail(self, error: BrokenOffError) -> None:
        # It is told before what nobody has taken yet: an answer that has not begun is then one to be tried again.
        self._error = self._error or error
        self.close()
        self._wake()


class Uplinks:
    """The connections to the socket at `path`.

    Mutable: `_free`, those that wait for a request, the longest first, and `_busy`, how many have one.
    """

    def __init__(self, path: str, connect_s: float) -> None:
        self._path = path
        self._connect_s = connect_s
        self._free: deque[Uplink] = deque()
        self._busy = 0

    @property
    def counts(self) -> tuple[int, int]:
        """How many have a request, and how many wait for one."""
        return self._busy, len(self._free)

    async def send(self, request: bytes) -> Uplink:
        """Send a request, on a free connection or a new one. The caller gives it back. Raises AbsentError."""
        while self._free:
            free = self._free.pop()
            if free.is_quiet():
                free.ask(request)
                self._busy += 1
                return free
            free.close()
        made = await self._connected()
        made.ask(request)
        self._busy += 1
        return made

    def give_back(self, used: Uplink) -> None:
        """The caller is done with it. An answer that is not whole is broken off."""
        self._busy -= 1
        if used.answered and len(self._free) < MOST_FREE:
            used.free_since_s = asyncio.get_running_loop().time()
            self._free.append(used)
        else:
            used.close()

    def close(self, free_for_s: float = 0.0) -> None:
        """Close what has been free for so long."""
        until_s = asyncio.get_running_loop().time() - free_for_s
        while self._free and self._free[0].free_since_s <= until_s:
            self._free.popleft().close()

    async def _connected(self) -> Uplink:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                transport, uplink = await loop.create_unix_connection(Uplink, self._path)
        except OSError as exc:  # TimeoutError is one
            raise AbsentError("nobody listens there") from exc
        if peer_uid(transport.get_extra_info("socket")) not in {os.geteuid(), 0}:
            uplink.close()
            raise AbsentError("another user listens there")
        return uplink


def request(method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """The bytes of a request. Raises ValueError for a header that would be more than one."""
    length = {} if body is None else {"content-length": str(len(body))}
    fields = {"host": "sidecar", **length, **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    text = "\r\n".join(lines)
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1 or "\0" in text:
        raise ValueError("a header of a request breaks its line")
    return text.encode() + b"\r\n\r\n" + (body or b"")
