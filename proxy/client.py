"""One client's end of an exchange: its body, its answer, and whether it is still there. No routing, no rules.

Bodies are bounded in size, time and inflation, and every write in time. A client that leaves, or that must go, ends the
exchange by `leave`: what runs under `present` is interrupted, and everything after it still happens.
"""

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import cast

from aiohttp import web
from aiohttp.http_writer import HttpVersion11
from typing_extensions import override

from proxy import reply
from proxy.clock import Clock
from proxy.edge import EdgeProtocol, common_headers
from proxy.exchange import Arrival, Ending
from proxy.patience import Stretch, unless_late
from proxy.settings import Limits, Timeouts
from sidecar.wire.errors import ApiError, bad_request


class LeftError(Exception):
    """The exchange is over before its answer is: the client is gone or stalled, or we are shutting down."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


class Written(web.StreamResponse):
    """An answer that has left already: aiohttp is only told whether its connection goes on."""

    def __init__(self, *, keep_alive: bool) -> None:
        self._keep_alive = keep_alive

    @override
    async def prepare(self, request: web.BaseRequest) -> None:
        """Its head was written."""

    @override
    async def write_eof(self, data: bytes = b"") -> None:
        """So was its end."""


class Client:
    """The client's end of one exchange: its body, its answer, and whether it is still there.

    Mutable: `_headers` (of the answer to come), `_written` (the answer under way, or None), `_head` (its head, until it
    leaves with the first events), `_chunked` (how it is told where a stream ends), `_left` (why the exchange is over
    early), `_stretch` (what is interrupted when it is), `_stalled` (whether a write took too long).
    """

    def __init__(
        self, request: web.BaseRequest, arrival: Arrival, *, limits: Limits, timeouts: Timeouts, clock: Clock
    ) -> None:
        self.arrival = arrival
        self._request = request
        # Whatever listens here is an edge.
        self._connection = cast("EdgeProtocol", request.protocol)
        self._limits = limits
        self._timeouts = timeouts
        self._clock = clock
        self._headers: dict[str, str] = {}
        self._written: Written | None = None
        self._head = b""
        self._chunked = False
        self._left: Ending | None = None
        self._stretch = Stretch()
        self._stalled = False

    @property
    def answered(self) -> bool:
        """Whether an answer has begun; from then on an error can only be an event in it."""
        return self._written is not None

    @property
    def response(self) -> web.StreamResponse:
        """What the server is to finish: the answer given, or an empty one nobody is there to read."""
        return self._written if self._written is not None else web.Response(status=499)

    @property
    def method(self) -> str:
        return self._request.method

    @property
    def target(self) -> str:
        """The path and the query as they came."""
        return self._request.raw_path

    def values(self, name: str) -> tuple[str, ...]:
        """All values of a header of the request."""
        return tuple(self._request.headers.getall(name, ()))

    def known(self) -> None:
        """The client's key is one of ours: its connection is no stranger's any more."""
        self._connection.known()

    def outlive(self) -> None:
        """The exchange comes to its end without its client, too: it is told of it, and not cancelled."""
        self._connection.outlive(lambda: self.leave(Ending.CLIENT_GONE))

    def announce(self, headers: Mapping[str, str]) -> None:
        """Add headers to the answer to come."""
        self._headers.update(headers)

    def leave(self, ending: Ending) -> None:
        """End the exchange early: whatever runs under `present` is interrupted. The first reason stands."""
        if self._left is None:
            self._left = ending
            self._stretch.cut()

    def present(self) -> AbstractAsyncContextManager[None]:
        """A stretch that ends with LeftError as soon as the exchange is over early."""
        return _Presence(self, self._stretch)

    def check_present(self) -> None:
        """Raises LeftError."""
        if self._left is not None:
            raise LeftError(self._left)

    async def body(self, check: Callable[[bytes], None] | None = None) -> bytes:
        """The request's body, inflated. Raises ApiError 400, 408, 413 or 415, or LeftError.

        `check` is given it as it was sent first, and raises what it likes.
        """
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"identity", "gzip"}:
            raise ApiError(415, "Only identity and gzip bodies are accepted.", code="unsupported_media_type")
        if (self._request.content_length or 0) > self._limits.max_body_bytes:
            raise self._too_large()
        if (expect := self._request.headers.get("expect")) is not None:
            await self._continue(expect)
        try:
            raw = await self._read()
        except TimeoutError as exc:
            raise ApiError(408, "The request body took too long.", code="request_timeout") from exc
        except web.RequestPayloadError as exc:
            raise bad_request("The request body is not valid HTTP/1.1.") from exc
        except ConnectionError as exc:
            raise LeftError(Ending.CLIENT_GONE) from exc
        if check is not None:
            check(raw)
        return self._inflate(raw) if encoding == "gzip" else raw

    async def _continue(self, expect: str) -> None:
        """Answer `Expect: 100-continue`, now that the body is wanted. Raises ApiError 417."""
        if expect.lower() != "100-continue":
            raise ApiError(417, "Only 100-continue may be expected.")
        await self._deliver(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The interim answer is no part of the answer.
        self._request.writer.output_size = 0

    async def _read(self) -> bytes:
        """All of the body, within the time for the whole and for each pause. Raises TimeoutError."""
        content = self._request.content
        if content.is_eof() and content.total_bytes <= self._limits.max_body_bytes:
            # It came with its head.
            return content.read_nowait()
        pieces: list[bytes] = []
        size = 0
        now_s = asyncio.get_running_loop().time
        end_s, idle_s = now_s() + self._limits.body_timeout_s, self._limits.body_idle_timeout_s
        async with asyncio.timeout_at(min(end_s, now_s() + idle_s)) as limit:
            while piece := await content.readany():
                size += len(piece)
                if size > self._limits.max_body_bytes:
                    raise self._too_large()
                pieces.append(piece)
                limit.reschedule(min(end_s, now_s() + idle_s))
        return b"".join(pieces)

    def _inflate(self, raw: bytes) -> bytes:
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            body = inflater.decompress(raw, self._limits.max_body_bytes + 1)
        except zlib.error as exc:
            raise bad_request("The request body is not valid gzip.") from exc
        if len(body) > self._limits.max_body_bytes:
            raise self._too_large()
        if not inflater.eof or inflater.unused_data:
            raise bad_request("The request body is not valid gzip.")
        return body

    def _too_large(self) -> ApiError:
        limit = self._limits.max_body_bytes
        return ApiError(413, f"The request body may have {limit} bytes at most.", code="request_too_large")

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Give a whole JSON answer. Raises LeftError."""
        self.announce(headers or {})
        head = self._begin(status, "application/json", len(body))
        await self._deliver(head if self._request.method == "HEAD" else head + body)

    def send(self, events: bytes) -> bool:
        """Send whole server-sent events, the head with the first ones; whether the client reads as fast as they come.

        If it does not, `caught_up` is to be awaited before more is sent. Raises LeftError.
        """
        self._begin_stream()
        self._write(self._pieces(events))
        return not self._connection.writing_paused

    async def caught_up(self) -> None:
        """Wait for a client that is slow to read, for as long as the limit allows. Raises LeftError."""
        try:
            if self._connection.writing_paused:
                await unless_late(self._connection.drained(), self._timeouts.client_write_s, self._stall)
        except ConnectionError as exc:
            raise self._gone() from exc
        if self._stalled:
            raise LeftError(Ending.CLIENT_STALLED)

    async def finish(self, events: bytes) -> None:
        """Send the last events and the proper end. Raises LeftError."""
        self._begin_stream()
        await self._deliver(self._pieces(events, reply.LAST_CHUNK))

    async def fail(self, event: bytes) -> None:
        """Send an error event if there is one, and break the connection off: never a proper end.

        Nobody waits for a client that is slow to read it: the sidecar is still to be stopped.
        """
        if self._written is None or self._request.transport is None:
            return
        if event:
            with contextlib.suppress(ConnectionError):
                self._connection.send(self._pieces(event))
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection once what was written has left, and in any case when the write limit is over."""
        transport = self._request.transport
        if transport is not None:
            self._request.protocol.force_close()
            asyncio.get_running_loop().call_later(self._timeouts.client_write_s, transport.abort)

    def _begin(self, status: int, content_type: str, length: int | None) -> bytes:
        """Begin the answer: its head, which is still to be written. `length` of None is a stream's."""
        request = self._request
        took_s = self._clock.monotonic() - self.arrival.monotonic_s
        fields = {**self._headers, **common_headers(self.arrival.request_id, took_s), "content-type": content_type}
        self._chunked = length is None and request.version >= HttpVersion11
        # A body that was not read to its end is in the way of the next request.
        goes_on = request.keep_alive and request.content.is_eof() and (length is not None or self._chunked)
        head = reply.head(status, fields, version=request.version, length=length, keep_alive=goes_on)
        self._written = Written(keep_alive=goes_on)
        return head

    def _begin_stream(self) -> None:
        if self._written is None:
            self.announce({"cache-control": "no-cache", "x-accel-buffering": "no"})
            self._head = self._begin(200, "text/event-stream", None)

    def _pieces(self, events: bytes, end: bytes = b"") -> bytes:
        """What a stream has to write for events: with its head, if they are the first."""
        head, self._head = self._head, b""
        if not self._chunked:
            return head + events
        return head + (reply.chunk(events) if events else b"") + end

    async def _deliver(self, data: bytes) -> None:
        """Write, and wait for a client that is slow to read. Raises LeftError."""
        self._write(data)
        await self.caught_up()

    def _write(self, data: bytes) -> None:
        """Raises LeftError."""
        try:
            self._connection.send(data)
        except ConnectionError as exc:
            raise self._gone() from exc
        # By this it is known that an answer is under way.
        self._request.writer.output_size += len(data)

    def _gone(self) -> LeftError:
        return LeftError(Ending.CLIENT_STALLED if self._stalled else Ending.CLIENT_GONE)

    def _stall(self) -> None:
        """The client does not read. Without a connection the write ends, one way or the other."""
        self._stalled = True
        self.leave(Ending.CLIENT_STALLED)
        transport = self._request.transport
        if transport is not None:
            transport.abort()


class _Presence:
    """A client's presence, as a stretch. Stateless."""

    __slots__ = ("_client", "_stretch")

    def __init__(self, client: Client, stretch: Stretch) -> None:
        self._client = client
        self._stretch = stretch

    async def __aenter__(self) -> None:
        self._client.check_present()
        self._stretch.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stretch.end(kind, exc)
        except TimeoutError:
            self._client.check_present()
            raise
