"""The HTTP edge: a hardened server protocol. No routing, no rules; one client's end of an exchange is `proxy.client`,
and who may connect at all is `proxy.door`'s.

What stock aiohttp 3.14 does and this does not: answer and log a malformed request with its own bytes (a key may be
among them), wait for ever for a head, let a handler outlive its client unseen.
"""

import asyncio
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo
from typing_extensions import override

from proxy.addresses import LOCAL, Addresses
from proxy.connections import Place
from proxy.http1 import Connection
from proxy.settings import Limits
from sidecar.wire.errors import SERVER_ERROR, ApiError

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 64 * 1024
SEND_BUFFER_BYTES: Final = 128 * 1024
WRITE_BUFFER_BYTES: Final = 64 * 1024
# RFC 9110, 7.2: a name, an IPv4 address or an IPv6 address in brackets, and a port or none. Nothing is done with it.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
# OpenAI's API reference, "Debugging requests".
OPENAI_VERSION: Final = "2020-10-01"


# Behind no proxy.
DIRECT: Final = Addresses()
# Makes the answer for bytes that are no request, told the address they came from.
Refuse = Callable[[ApiError, str], web.Response]


class EdgeProtocol(Connection):
    """A connection with errors that say nothing of the request's bytes, and a limit on the time of a head.

    Mutable beside the connection's: `_head_timer`, while a head is due; `_head_begun`, whether bytes of it are here;
    `_last_body`, of the last head that came. `_place` is its place among the connections, if they are counted.
    """

    __slots__ = ("_head_begun", "_head_timeout_s", "_head_timer", "_last_body", "_place", "_refuse", "_same_user")

    def __init__(
        self,
        manager: "EdgeServer",
        place: Place | None,
        *,
        refuse: Refuse,
        same_user: bool,
        head_timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._place = place
        self._refuse = refuse
        self._same_user = same_user
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_begun = False
        self._last_body: StreamReader = EMPTY_PAYLOAD

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # uvloop's transports have asyncio's methods and not its classes, so there is nothing to check here.
        real = cast("asyncio.Transport", transport)
        real.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        raw = real.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if self._same_user and peer_uid(raw) not in {os.geteuid(), 0}:
            real.abort()
        self._start_head_timer()

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)
        if self._place is not None:
            self._place.leave()

    def known(self) -> None:
        """A key of ours came through: this is no stranger's connection any more."""
        if self._place is not None:
            self._place.known()

    @override
    def data_received(self, data: bytes) -> None:
        # Not the running request's: before Python 3.12 a request is neither in the queue nor running for a moment.
        in_body = not self._last_body.is_eof()
        super().data_received(data)
        if self._messages:
            self._last_body = self._messages[-1][1]
            self._stop_head_timer()
        elif not in_body and not self._head_begun:
            self._head_begun = True
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        self._head_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._current_request is not None:
            # The next head waits for an answer that is still under way: its time begins anew.
            self._start_head_timer()
            return
        if not self._head_begun:
            # Not a byte: an answer to nothing would be taken for the answer to what comes next.
            self.force_close()
            return
        # From here it goes the way of bytes that cannot be parsed.
        self._request_count += 1
        self._messages.append((_ErrInfo(408, HttpProcessingError(code=408), ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @override
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What a request that could not be parsed is told. `message` quotes it, so it goes nowhere."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        response = self._refuse(_parse_refusal(status, exc, self.max_field_size), peer_of(request))
        response.force_close()
        return response

    @override
    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Nothing: the exception's text may hold header bytes, and the front logs what it refuses."""

    def wind_down(self) -> None:
        """Take no further request: an idle connection is closed now, a busy one after its answer."""
        waiting = self._waiter is not None and not self._waiter.done()
        if not self._messages and (waiting or not self._request_count):
            self.force_close()
        elif self._last_body.is_eof():
            # Not before the body is here: a closing protocol reads nothing any more. Whether the request runs is no
            # question: between being taken and being run, and while its answer is finished, it is nowhere to be seen.
            self.close()


def _parse_refusal(status: int, exc: BaseException | None, field_limit: int) -> ApiError:
    if isinstance(exc, LineTooLong):
        if exc.args[1:2] == (field_limit,):
            return ApiError(431, "A request header is too long.", code="request_too_large")
        return ApiError(414, "The request line is too long.", code="request_too_large")
    if isinstance(exc, BadHttpMessage) and exc.message.startswith("Too many headers"):
        return ApiError(431, "The request has too many headers.", code="request_too_large")
    if status == 408:
        return ApiError(408, "The request head took too long.", code="request_timeout")
    if status >= 500:
        return ApiError(500, "The server had an error while processing your request.", type=SERVER_ERROR)
    return ApiError(400, "The request is not valid HTTP/1.1.")


class EdgeServer(web.Server):
    """aiohttp's low-level server, making our protocols. `same_user`: serve nobody else on a Unix socket but root."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refuse: Refuse,
        limits: Limits,
        *,
        same_user: bool = False,
        addresses: Addresses = DIRECT,
        overload: Callable[[], ApiError | None] = lambda: None,
    ) -> None:
        # A handler is cancelled all the same when its client leaves: the connection sees to that.
        super().__init__(self._checked, handler_cancellation=False)
        self._handle = handler
        self._refuse = refuse
        self._addresses = addresses
        self._overload = overload
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "head_timeout_s": limits.head_timeout_s,
            "keepalive_timeout": limits.keep_alive_s,
            "max_headers": MAX_HEADERS,
            "max_line_size": limits.max_header_line_bytes,
            "refuse": refuse,
            "same_user": same_user,
            # One more than a request line may have: by this number a refusal knows which of the two was too long.
            "max_field_size": limits.max_header_line_bytes + 1,
        }

    @override
    def __call__(self) -> web.RequestHandler:
        return self.welcome(None)

    def welcome(self, place: Place | None) -> EdgeProtocol:
        """The protocol of a connection that has this place."""
        return EdgeProtocol(self, place, loop=self._loop, **self._options)

    async def _checked(self, request: web.BaseRequest) -> web.StreamResponse:
        error = _head_refusal(request) or self._overload()
        if error is None:
            return await self._handle(request)
        response = self._refuse(error, address_of(request, self._addresses))
        response.force_close()
        return response

    def wind_down(self) -> None:
        """Close what is idle, and let what is busy be the last of its connection."""
        for connection in self.connections:
            if isinstance(connection, EdgeProtocol):
                connection.wind_down()


def _head_refusal(request: web.BaseRequest) -> ApiError | None:
    """What is wrong with a head that could be parsed."""
    size = 0
    for name, value in request.raw_headers:
        size += len(name) + len(value)
    if size > MAX_HEADER_BYTES:
        return ApiError(431, "The request headers are too large together.", code="request_too_large")
    # That there is one, and no second, is the parser's.
    for host in request.headers.getall("host", ()):
        if not _HOST.fullmatch(host):
            return ApiError(400, "The request has no valid Host header.")
    # aiohttp takes `gzip, chunked` for chunked. Nobody is to have to guess where a body ends.
    for coding in request.headers.getall("transfer-encoding", ()):
        if coding.strip().lower() != "chunked":
            return ApiError(400, "The only transfer encoding is 'chunked'.")
    return None


def peer_uid(peer: socket.socket) -> int:
    """Who is at the other end of a Unix socket (unix(7), SO_PEERCRED: pid, uid, gid)."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def peer_of(request: web.BaseRequest) -> str:
    """The IP address at the other end; `local` on a Unix socket."""
    peer = request.protocol.peername
    return str(peer[0]) if isinstance(peer, tuple) and peer else LOCAL


def address_of(request: web.BaseRequest, addresses: Addresses) -> str:
    """The client's IP address."""
    peer = peer_of(request)
    return addresses.of(peer, request.headers.getall("x-forwarded-for", ())) if addresses.trusts(peer) else peer


def common_headers(request_id: str, processing_s: float) -> dict[str, str]:
    """The headers of every answer. `server` stands here so that aiohttp does not put its version there."""
    return {
        "server": "tollhouse",
        "x-request-id": request_id,
        "openai-version": OPENAI_VERSION,
        "openai-processing-ms": str(max(0, round(processing_s * 1000))),
    }
