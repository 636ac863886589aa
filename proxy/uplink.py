"""One request and its answer over a Unix socket, on a connection of its own: as little HTTP as a sidecar needs.

A kept connection may be half closed by a sidecar that restarted, and a POST on it could not be told from one that ran;
a Unix socket connects in some 0.03 ms. What listens there runs as this user, or as root, or is not spoken to.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Final, cast

from typing_extensions import override

from proxy.answers import BrokenOffError, Head, Reading
from proxy.edge import peer_uid

# An answer that is not read as fast as it comes is left in the socket beyond this.
MOST_KEPT_BYTES: Final = 256 * 1024


class AbsentError(ConnectionError):
    """Nobody listens that we would speak to: nothing was sent."""


class Uplink(asyncio.Protocol):
    """The connection, once the request is sent.

    Mutable: `_transport`; `_reading`; `_pieces`, of the body, that nobody has taken yet, and `_kept`, their bytes;
    `_held`, while those are too many; `_error`, why no more will come; `_waiter`, for who waits for more.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reading = Reading()
        self._pieces: list[bytes] = []
        self._kept = 0
        self._held = False
        self._error: BrokenOffError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's methods and not its classes, so there is nothing to check here.
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        try:
            piece = self._reading.feed(data)
        except BrokenOffError as exc:
            self._fail(exc)
            return
        if piece:
            self._pieces.append(piece)
            self._kept += len(piece)
            if self._kept > MOST_KEPT_BYTES and not self._held and self._transport is not None:
                self._held = True
                self._transport.pause_reading()
        self._wake()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._reading.whole:
            return
        try:
            self._reading.end()
        except BrokenOffError as broken:
            broken.__cause__ = exc
            self._fail(broken)
        self._wake()

    async def head(self, limit_s: float) -> Head:
        """Raises BrokenOffError, or TimeoutError after `limit_s`."""
        while self._reading.head is None:
            await self._more(limit_s)
        return self._reading.head

    async def piece(self, limit_s: float) -> bytes:
        """What has come of the body since the last call, at least a byte; empty at its end. Raises as `head` does."""
        while self._error is not None or not self._pieces:
            if self._reading.whole and self._error is None:
                return b""
            await self._more(limit_s)
        pieces, self._pieces, self._kept = self._pieces, [], 0
        if self._held and self._transport is not None:
            self._held = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Break the connection off, whatever comes on it."""
        if self._transport is not None:
            self._transport.abort()

    async def _more(self, limit_s: float) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(limit_s, _late, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: BrokenOffError) -> None:
        # It is told before what nobody has taken yet: an answer that has not begun is then one to be tried again.
        self._error = self._error or error
        self.close()
        self._wake()


def _late(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


async def send(path: str, request: bytes, connect_s: float) -> Uplink:
    """Connect to the socket at `path` and send. The caller closes what it gets. Raises AbsentError."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(connect_s):
            transport, uplink = await loop.create_unix_connection(Uplink, path)
    except OSError as exc:  # TimeoutError is one
        raise AbsentError("nobody listens there") from exc
    if peer_uid(transport.get_extra_info("socket")) not in {os.geteuid(), 0}:
        uplink.close()
        raise AbsentError("another user listens there")
    transport.write(request)
    return uplink


def request(method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """The bytes of a request. Raises ValueError for a header that would be more than one."""
    length = {} if body is None else {"content-length": str(len(body))}
    fields = {"host": "sidecar", "connection": "close", **length, **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    text = "\r\n".join(lines)
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1 or "\0" in text:
        raise ValueError("a header of a request breaks its line")
    return text.encode() + b"\r\n\r\n" + (body or b"")
