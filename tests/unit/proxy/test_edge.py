"""The edge's small decisions; its behaviour on a socket is in tests/wire/proxy."""

import asyncio
import os
import socket
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong

from proxy.edge import (
    _HOST,
    SEND_BUFFER_BYTES,
    WRITE_BUFFER_BYTES,
    EdgeServer,
    _parse_refusal,
    common_headers,
    peer_of,
    peer_uid,
)
from proxy.settings import Limits

LIMIT = 8191
CANARY = "sk-th_canary"


@pytest.mark.parametrize(
    ("status", "exc", "expected", "code"),
    [
        (400, LineTooLong(CANARY.encode(), LIMIT), 431, "request_too_large"),
        (400, LineTooLong(CANARY.encode(), LIMIT - 1), 414, "request_too_large"),
        (400, BadHttpMessage("Too many headers received: " + CANARY), 431, "request_too_large"),
        (400, BadHttpMessage(CANARY), 400, None),
        (400, BadStatusLine(CANARY), 400, None),
        (408, BadHttpMessage(CANARY), 408, "request_timeout"),
        (500, ZeroDivisionError(CANARY), 500, None),
        (504, None, 500, None),
    ],
)
def test_what_cannot_be_parsed_is_refused_without_a_byte_of_it(
    status: int, exc: Exception | None, expected: int, code: str | None
) -> None:
    error = _parse_refusal(status, exc, LIMIT)
    assert (error.status, error.code) == (expected, code)
    assert CANARY not in error.message


@pytest.mark.parametrize(
    "host", ["a", "tollhouse", "api.example.com", "127.0.0.1:8000", "[::1]", "[2001:db8::1]:443", "x_y-z.example:1"]
)
def test_w9_a_host_is_a_name_or_an_address_with_a_port(host: str) -> None:
    assert _HOST.fullmatch(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a/b",
        "a@b",
        "a:b",
        "a:123456",
        "http://a",
        "[::1",
        "::1",
        "a,b",
        "a\\b",
        "a%00",
        "a?b",
        "a#b",
        "ä",
        "a" * 256,
    ],
)
def test_w9_anything_else_is_none(host: str) -> None:
    assert not _HOST.fullmatch(host)


def test_every_answer_has_its_id_version_and_time() -> None:
    headers = common_headers("req_1", 0.0126)
    assert headers == {
        "server": "tollhouse",
        "x-request-id": "req_1",
        "openai-version": "2020-10-01",
        "openai-processing-ms": "13",
    }
    assert common_headers("req_1", -1.0)["openai-processing-ms"] == "0"


def test_the_peer_of_a_unix_socket_is_known() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_uid(ours) == os.geteuid()


class FakeRequest:
    """A request with a peer."""

    def __init__(self, peername: object) -> None:
        self.peername = peername

    @property
    def protocol(self) -> Any:
        return self


@pytest.mark.parametrize(
    ("peername", "address"),
    [(("192.0.2.1", 5), "192.0.2.1"), (("::1", 5, 0, 0), "::1"), ("", "local"), (None, "local")],
)
def test_the_peer_of_a_peer(peername: object, address: str) -> None:
    request: Any = FakeRequest(peername)
    assert peer_of(request) == address


@pytest.mark.parametrize("turns", range(5))
async def test_a_body_is_not_taken_for_the_next_head_however_soon_it_comes(turns: int) -> None:
    answered = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        answered.set()
        return web.Response()

    server = EdgeServer(answer, lambda error, _: web.Response(status=error.status), Limits())
    ours, theirs = socket.socketpair()
    with theirs:
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(server, ours)
        protocol.data_received(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        protocol.data_received(b"body")
        assert protocol._head_timer is None
        await answered.wait()
        protocol.force_close()


@pytest.mark.parametrize("turns", range(8))
async def test_f11_a_request_that_was_taken_is_answered_whenever_the_end_is_told(turns: int) -> None:
    """Between being taken from the queue and being run, and while its answer is written, no list has it."""

    async def answer(request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0)
        return web.Response(text="done")

    server = EdgeServer(answer, lambda error, _: web.Response(status=error.status), Limits())
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.connect_accepted_socket(server, ours)
        await asyncio.sleep(0)
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        protocol.wind_down()
        received = b""
        while piece := await loop.sock_recv(theirs, 4096):
            received += piece
        assert received.endswith(b"done")


async def test_w3_what_a_client_does_not_read_is_bounded() -> None:
    """The kernel's buffer and ours: whatever an answer holds, one stalled client costs no more."""
    piece, written, stuck = b"x" * 16_384, 0, asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            writing = asyncio.ensure_future(response.write(piece))
            done, _ = await asyncio.wait({writing}, timeout=0.2)
            if not done:
                writing.cancel()
                stuck.set()
                return response
            written += len(piece)

    server = EdgeServer(answer, lambda error, _: web.Response(status=error.status), Limits())
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(server, ours)
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await stuck.wait()
        # Linux doubles the size that it is told, for its own bookkeeping (socket(7)).
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
        assert protocol.transport.get_write_buffer_size() <= WRITE_BUFFER_BYTES + 2 * len(piece)
        assert written <= 512 * 1024
        protocol.force_close()
