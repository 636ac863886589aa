"""The life of an HTTP/1.1 connection: one request after the other, in one task. What is refused is `proxy.edge`'s.

aiohttp runs each request in a task of its own, beside the connection's, and cancels both when the client leaves. Here
there is the one; an exchange that must come to its end whoever is there to hear of it says so (`outlive`).
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, _ErrInfo
from aiohttp.web_request import BaseRequest
from typing_extensions import override

# How long an unread body is read away after an early refusal, so that the client can read the answer.
LINGER_S: Final = 2.0


class Connection(web.RequestHandler):
    """aiohttp's protocol with a loop of our own. Mutable beside its own: `_gone`, who is told that the client left."""

    __slots__ = ("_gone",)

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._gone: Callable[[], None] | None = None

    def outlive(self, gone: Callable[[], None]) -> None:
        """Until its end, the request that runs is not cancelled when the client leaves: `gone` is called instead."""
        self._gone = gone

    def send(self, data: bytes) -> None:
        """Write a part of an answer. Raises ConnectionError if there is nobody to read it."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("the connection is over")
        self.transport.write(data)

    async def drained(self) -> None:
        """Return when what was written has left, but for what one write may leave behind. Raises ConnectionError."""
        await self._drain_helper()

    @override
    async def _drain_helper(self) -> None:
        if self._drain_waiter is not None and self._drain_waiter.cancelled():
            # Who waited was cut off. That is not to befall who waits next.
            self._drain_waiter = None
        await super()._drain_helper()

    @override
    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp asks for it twice a body, and parses nothing once more, whether reading was held or not.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        task = self._task_handler
        super().connection_lost(exc)
        if self._gone is not None:
            self._gone()
        elif task is not None:
            task.cancel()

    @override
    async def start(self) -> None:
        try:
            while not self._force_close:
                message, body = await self._next()
                if not await self._serve(message, body):
                    break
                self._wait_for_more()
        except ConnectionError:
            pass  # there is nobody to be told
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary: whatever it was, nothing more is served here
            self.log_exception("connection failed", exc_info=exc)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _next(self) -> tuple[Any, StreamReader]:
        """The next head, or what is wrong with the bytes in its place, and its body."""
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        found = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return found

    async def _serve(self, message: Any, body: StreamReader) -> bool:
        """Serve a request; whether another one may follow."""
        handler, task = self._request_handler, self._task_handler
        if handler is None or task is None:
            return False  # the connection is lost
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        request = BaseRequest(message, body, self, StreamWriter(self, self._loop), task, self._loop)
        try:
            response, lost = await self._handle_request(request, None, handler)
        finally:
            self._gone = None
        if lost:
            return False
        if not body.is_eof():
            await self._read_away(body)
        self._keepalive = bool(response.keep_alive)
        return self._keepalive and not self._close

    async def _read_away(self, body: StreamReader) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not body.is_eof() and not self._force_close:
                    await body.readany()
        if not body.is_eof():
            self.close()

    def _wait_for_more(self) -> None:
        """The time of a connection that idles begins. One timer is enough: it is set anew when it is too early."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
