"""The listeners' sockets: bound before anything is loaded, served on, and wound down. What they serve is the edge's."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

from proxy import sockets
from proxy.door import Door
from proxy.edge import EdgeServer
from proxy.settings import Proxy
from proxy.tls import SecureServer

BACKLOG: Final = 1024
# How long a connection that does not end by itself may take to be closed.
CLOSE_S: Final = 1.0


class Closes(Protocol):
    """A listener."""

    def close(self) -> None: ...


async def bind(settings: Proxy, stack: contextlib.AsyncExitStack) -> tuple[socket.socket, socket.socket, socket.socket]:
    """The public, the admin and the Unix socket, bound. Raises ListenError."""
    path = Path(settings.admin.socket)
    public = await asyncio.to_thread(sockets.bind_tcp, settings.listen.host, settings.listen.port)
    stack.callback(public.close)
    admin = await asyncio.to_thread(sockets.bind_tcp, settings.admin.host, settings.admin.port)
    stack.callback(admin.close)
    unix = await asyncio.to_thread(sockets.bind_unix, path)
    stack.push_async_callback(asyncio.to_thread, path.unlink, missing_ok=True)
    stack.callback(unix.close)
    return public, admin, unix


@contextlib.asynccontextmanager
async def listening(edge: EdgeServer, door: Door, bound: socket.socket | SecureServer) -> AsyncIterator[Closes]:
    """Raises ListenError."""
    loop = asyncio.get_running_loop()
    server: Closes
    if isinstance(bound, SecureServer):
        server = bound
        bound.listen(BACKLOG)
    else:
        sockets.listen(bound, BACKLOG)
        create = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
        server = await create(door, sock=bound, backlog=BACKLOG)
    try:
        yield server
    finally:
        server.close()
        if isinstance(server, SecureServer):
            await server.wait_closed()
        door.close()
        edge.wind_down()
        await edge.shutdown(CLOSE_S)
