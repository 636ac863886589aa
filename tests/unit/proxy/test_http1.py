"""A connection's life; what is refused on it is in test_edge, and its behaviour on a socket in tests/wire/proxy."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from proxy.http1 import Connection

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def connected(handler: Handler) -> tuple[Connection, socket.socket]:
    """A connection that this serves, and the client's end of it."""
    loop = asyncio.get_running_loop()
    server = web.Server(handler)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, connection = await loop.connect_accepted_socket(lambda: Connection(server, loop=loop), ours)
    return connection, theirs


class Handling:
    """A handler that waits to be told to end. Mutable: what became of it."""

    def __init__(self, *, outlives: bool) -> None:
        self._outlives = outlives
        self.begun, self.end, self.over, self.gone = (asyncio.Event() for _ in range(4))
        self.cancelled = False

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._outlives:
            assert isinstance(request.protocol, Connection)
            request.protocol.outlive(self.gone.set)
        self.begun.set()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.over.set()
        return web.Response(text="done")


async def test_w7_a_request_is_cancelled_when_its_client_leaves() -> None:
    handling = Handling(outlives=False)
    _, theirs = await connected(handling)
    with theirs:
        await asyncio.get_running_loop().sock_sendall(theirs, REQUEST)
        await handling.begun.wait()
    await handling.over.wait()
    assert handling.cancelled


async def test_w7_one_that_outlives_its_client_is_told_and_comes_to_its_end() -> None:
    handling = Handling(outlives=True)
    connection, theirs = await connected(handling)
    task = connection._task_handler
    assert task is not None
    with theirs:
        await asyncio.get_running_loop().sock_sendall(theirs, REQUEST)
        await handling.begun.wait()
    await handling.gone.wait()
    assert not handling.over.is_set()
    handling.end.set()
    await task
    assert not handling.cancelled


async def test_w8_requests_are_served_one_after_the_other() -> None:
    running, most, served = 0, 0, 0

    async def handler(_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal running, most, served
        running, most, served = running + 1, max(most, running + 1), served + 1
        await asyncio.sleep(0)
        running -= 1
        return web.Response(text=f"answer {served};")

    connection, theirs = await connected(handler)
    loop = asyncio.get_running_loop()
    with theirs:
        await loop.sock_sendall(theirs, REQUEST * 3)
        received = b""
        while b"answer 3;" not in received:
            received += await loop.sock_recv(theirs, 4096)
        assert (most, served) == (1, 3)
        connection.force_close()


async def test_a_body_that_nobody_reads_is_read_away_and_the_connection_goes_on() -> None:
    async def handler(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="no")

    connection, theirs = await connected(handler)
    loop = asyncio.get_running_loop()
    with theirs:
        await loop.sock_sendall(theirs, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n")
        received = await loop.sock_recv(theirs, 4096)
        await loop.sock_sendall(theirs, b"body" + REQUEST)
        received += await loop.sock_recv(theirs, 4096)
        assert received.count(b"HTTP/1.1 200 OK") == 2
        connection.force_close()


async def test_who_was_cut_off_while_it_waited_to_write_does_not_cut_off_the_next() -> None:
    connection, theirs = await connected(Handling(outlives=False))
    with theirs:
        connection.pause_writing()
        first = asyncio.create_task(connection.drained())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(connection.drained())
        await asyncio.sleep(0)
        assert not second.done()
        connection.resume_writing()
        await second
        connection.force_close()


async def test_nothing_is_written_to_a_connection_that_is_over() -> None:
    connection, theirs = await connected(Handling(outlives=False))
    with theirs:
        connection.force_close()
    with pytest.raises(ConnectionError):
        connection.send(b"late")
