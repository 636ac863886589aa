"""A response of server-sent events: its head at once, comments while nothing comes, and an end that cannot be mistaken.

A proper end leaves only through `finish`; everything else breaks the connection off, for a reader takes a clean end
for a whole answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiohttp import web

from sidecar.protocol.answer import KEEP_ALIVE

# After an error event the peer has this long to read it.
LINGER_S: Final = 5.0


class EventStream:
    """One stream. Mutable: `_sent_s` (when bytes were last sent, on the loop's clock), the response."""

    def __init__(self, request: web.Request, headers: Mapping[str, str], keep_alive_s: float) -> None:
        self._request = request
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._sent_s = self._loop.time()
        self.response = web.StreamResponse(
            headers={
                **headers,
                "content-type": "text/event-stream",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            }
        )

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Send the head; comment on silence until this is left. Raises ConnectionError if the client is gone."""
        await self.response.prepare(self._request)
        beat = asyncio.create_task(self._beat(), name="keep-alive")
        try:
            yield
        finally:
            beat.cancel()
            await asyncio.wait({beat})

    async def send(self, events: bytes) -> None:
        """Raises ConnectionError if the client is gone."""
        await self.response.write(events)
        self._sent_s = self._loop.time()

    async def finish(self, events: bytes) -> None:
        """Send the last events and the proper end."""
        await self.response.write_eof(events)

    async def fail(self, event: bytes) -> None:
        """Send an error event and break the connection off."""
        with contextlib.suppress(ConnectionError):
            await self.response.write(event)
        break_off(self._request)

    async def _beat(self) -> None:
        while True:
            idle_s = self._loop.time() - self._sent_s
            if idle_s >= self._keep_alive_s:
                try:
                    await self.send(KEEP_ALIVE)
                except ConnectionError:
                    # The client is gone; its handler is told so by the server.
                    return
                idle_s = 0.0
            await asyncio.sleep(self._keep_alive_s - idle_s)


def break_off(request: web.Request) -> None:
    """Close the connection without a proper end, once what was written has left."""
    transport = request.transport
    if transport is not None:
        request.protocol.force_close()
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)
