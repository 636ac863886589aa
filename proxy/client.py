"""One client's end of an exchange: its body, its answer, and whether it is still there. No routing, no rules.

Bodies are bounded in size, time and inflation, and every write in time. A client that leaves, or that must go, ends the
exchange by `leave`: what runs under `present` is interrupted, and everything after it still happens.
"""

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from aiohttp import web

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


class _EventStream(web.StreamResponse):
    # aiohttp would send the head by itself at once; this way it leaves in one write with the first events.
    _send_headers_immediately = False


class Client:
    """The client's end of one exchange: its body, its answer, and whether it is still there.

    Mutable: `_headers` (of the answer to come), `_response` (the answer under way, or None), `_left` (why the exchange
    is over early), `_scope` (what is interrupted when it is), `_stalled` (whether a write took too long).
    """

    def __init__(
        self, request: web.BaseRequest, arrival: Arrival, *, limits: Limits, timeouts: Timeouts, clock: Clock
    ) -> None:
        self.arrival = arrival
        self._request = request
        self._limits = limits
        self._timeouts = timeouts
        self._clock = clock
        self._headers: dict[str, str] = {}
        self._response: web.StreamResponse | None = None
        self._left: Ending | None = None
        self._scope: Stretch | None = None
        self._stalled = False

    @property
    def answered(self) -> bool:
        """Whether an answer has begun; from then on an error can only be an event in it."""
        return self._response is not None

    @property
    def response(self) -> web.StreamResponse:
        """What the server is to finish: the answer given, or an empty one nobody is there to read."""
        return self._response if self._response is not None else web.Response(status=499)

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
        protocol = self._request.protocol
        if isinstance(protocol, EdgeProtocol):
            protocol.known()

    def announce(self, headers: Mapping[str, str]) -> None:
        """Add headers to the answer to come."""
        self._headers.update(headers)

    def leave(self, ending: Ending) -> None:
        """End the exchange early: whatever runs under `present` is interrupted. The first reason stands."""
        if self._left is None:
            self._left = ending
            if self._scope is not None:
                self._scope.cut()

    def present(self) -> AbstractAsyncContextManager[None]:
        """A stretch that ends with LeftError as soon as the exchange is over early."""
        return _Presence(self)

    def check_present(self) -> None:
        """Raises LeftError."""
        if self._left is not None:
            raise LeftError(self._left)

    def cut_by_leaving(self, scope: Stretch | None) -> None:
        """What `leave` cuts from now on."""
        self._scope = scope

    async def body(self, check: Callable[[bytes], None] | None = None) -> bytes:
        """The request's body, inflated. Raises ApiError 400, 408, 413 or 415, or LeftError.

        `check` is given it as it was sent first, and raises what it likes.
        """
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"identity", "gzip"}:
            raise ApiError(415, "Only identity and gzip bodies are accepted.", code="unsupported_media_type")
        if (self._request.content_length or 0) > self._limits.max_body_bytes:
            raise self._too_large()
        await self._continue()
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

    async def _continue(self) -> None:
        """Answer `Expect: 100-continue`, now that the body is wanted. Raises ApiError 417."""
        expect = self._request.headers.get("expect")
        if expect is None:
            return
        if expect.lower() != "100-continue":
            raise ApiError(417, "Only 100-continue may be expected.")
        await self._deliver(self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n"))
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
        response = web.Response(status=status, body=body, headers=self._head("application/json"))
        # A body that was not read to its end is in the way of the next request.
        if not self._request.content.is_eof():
            response.force_close()
        self._response = response
        await self._deliver(self._whole(response))

    async def send(self, events: bytes) -> None:
        """Send whole server-sent events, the head with the first ones. Raises LeftError."""
        stream = await self._stream() if self._response is None else self._response
        await self._deliver(stream.write(events))

    async def finish(self, events: bytes) -> None:
        """Send the last events and the proper end. Raises LeftError."""
        stream = await self._stream()
        await self._deliver(stream.write_eof(events))

    async def fail(self, event: bytes) -> None:
        """Send an error event if there is one, and break the connection off: never a proper end."""
        stream = self._response
        if stream is None or self._request.transport is None:
            return
        if event:
            with contextlib.suppress(LeftError):
                await self._deliver(stream.write(event))
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection once what was written has left, and in any case when the write limit is over."""
        transport = self._request.transport
        if transport is not None:
            self._request.protocol.force_close()
            asyncio.get_running_loop().call_later(self._timeouts.client_write_s, transport.abort)

    def _head(self, content_type: str) -> dict[str, str]:
        took_s = self._clock.monotonic() - self.arrival.monotonic_s
        return {**self._headers, **common_headers(self.arrival.request_id, took_s), "content-type": content_type}

    async def _stream(self) -> web.StreamResponse:
        if self._response is None:
            self.announce({"cache-control": "no-cache", "x-accel-buffering": "no"})
            self._response = _EventStream(headers=self._head("text/event-stream"))
            await self._deliver(self._prepare(self._response))
        return self._response

    async def _prepare(self, response: web.StreamResponse) -> None:
        await response.prepare(self._request)

    async def _whole(self, response: web.StreamResponse) -> None:
        await response.prepare(self._request)
        await response.write_eof()

    async def _deliver(self, writing: Awaitable[None]) -> None:
        """Write, for as long as the limit allows. Raises LeftError."""
        try:
            await unless_late(writing, self._timeouts.client_write_s, self._stall)
        except ConnectionError as exc:
            raise LeftError(Ending.CLIENT_STALLED if self._stalled else Ending.CLIENT_GONE) from exc
        if self._stalled:
            raise LeftError(Ending.CLIENT_STALLED)

    def _stall(self) -> None:
        """The client does not read. Without a connection the write ends, one way or the other."""
        self._stalled = True
        self.leave(Ending.CLIENT_STALLED)
        transport = self._request.transport
        if transport is not None:
            transport.abort()


class _Presence:
    """A client's presence, as a stretch. Mutable: nothing of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stretch = Stretch()

    async def __aenter__(self) -> None:
        self._client.check_present()
        await self._stretch.__aenter__()
        self._client.cut_by_leaving(self._stretch)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.cut_by_leaving(None)
        try:
            await self._stretch.__aexit__(kind, exc, trace)
        except TimeoutError:
            self._client.check_present()
            raise
