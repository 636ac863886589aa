"""The connections to a sidecar that are kept: which take another request, and which must not."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import uplink
from proxy.answers import BrokenOffError
from proxy.uplink import MOST_FREE, Uplink, Uplinks, request
from tests.fakes.waiting import LIMIT_S

ASKED = request("POST", "/v1/x", {"x-one": "1"}, b"{}")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Says `answer` to each request, and hears them all. Mutable: `heard`, `writers`, of each connection one."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.heard: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while asked := await reader.read(len(ASKED)):
                self.heard.append(asked)
                writer.write(self.answer)
        finally:
            self.closed += 1
            writer.close()


@contextlib.asynccontextmanager
async def serving(path: Path, answer: bytes = OK) -> AsyncIterator[tuple[Server, Uplinks]]:
    server = Server(answer)
    async with await asyncio.start_unix_server(server.serve, path):
        uplinks = Uplinks(str(path), LIMIT_S)
        try:
            yield server, uplinks
        finally:
            uplinks.close()


async def whole(sent: Uplink) -> bytes:
    pieces = []
    while piece := await sent.piece(LIMIT_S):
        pieces.append(piece)
    return b"".join(pieces)


async def exchange(uplinks: Uplinks) -> bytes:
    sent = await uplinks.send(ASKED)
    try:
        await sent.head(LIMIT_S)
        return await whole(sent)
    finally:
        uplinks.give_back(sent)


async def test_a_connection_is_used_again_once_its_answer_was_taken(tmp_path: Path) -> None:
    async with serving(tmp_path / "s.sock") as (server, uplinks):
        assert [await exchange(uplinks) for _ in range(3)] == [b"ok"] * 3
        assert len(server.writers) == 1
        both = await uplinks.send(ASKED), await uplinks.send(ASKED)
        for sent in both:
            assert await whole(sent) == b"ok"
            uplinks.give_back(sent)
        assert len(server.writers) == 2
        assert await exchange(uplinks) == b"ok"
        assert len(server.writers) == 2
    assert server.heard == [ASKED] * 6


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    ],
)
async def test_a_connection_that_is_to_end_with_its_answer_is_not_used_again(tmp_path: Path, answer: bytes) -> None:
    async with serving(tmp_path / "s.sock", answer) as (server, uplinks):
        assert [await exchange(uplinks) for _ in range(2)] == [b"ok"] * 2
        assert len(server.writers) == 2


async def test_an_answer_that_is_not_taken_whole_is_broken_off(tmp_path: Path) -> None:
    async with serving(tmp_path / "s.sock") as (server, uplinks):
        sent = await uplinks.send(ASKED)
        await sent.head(LIMIT_S)
        uplinks.give_back(sent)
        assert await exchange(uplinks) == b"ok"
        assert len(server.writers) == 2
        async with asyncio.timeout(LIMIT_S):
            while server.closed < 1:  # noqa: ASYNC110  # it is the loop that brings it
                await asyncio.sleep(0)


# What the loop does not know yet, it knows a turn later.
@pytest.mark.parametrize("turns", [0, 5])
async def test_w1_a_connection_that_ended_meanwhile_takes_no_request(tmp_path: Path, turns: int) -> None:
    async with serving(tmp_path / "s.sock") as (server, uplinks):
        await exchange(uplinks)
        server.writers[0].get_extra_info("socket")._sock.shutdown(socket.SHUT_RDWR)
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await exchange(uplinks) == b"ok"
        assert len(server.writers) == 2
    assert server.heard == [ASKED] * 2


@pytest.mark.parametrize("turns", [0, 5])
async def test_w1_a_connection_on_which_more_was_said_takes_no_request(tmp_path: Path, turns: int) -> None:
    async with serving(tmp_path / "s.sock") as (server, uplinks):
        await exchange(uplinks)
        server.writers[0].get_extra_info("socket")._sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await exchange(uplinks) == b"ok"
        assert len(server.writers) == 2


async def test_f2_a_request_whose_connection_ends_is_lost_and_never_sent_again(tmp_path: Path) -> None:
    async with serving(tmp_path / "s.sock") as (server, uplinks):
        await exchange(uplinks)
        sent = await uplinks.send(ASKED)
        server.writers[0].transport.abort()
        with pytest.raises(BrokenOffError):
            await sent.head(LIMIT_S)
        uplinks.give_back(sent)
        assert await exchange(uplinks) == b"ok"
        assert len(server.writers) == 2
    assert len(server.heard) <= 3


async def test_what_is_free_for_long_is_closed_and_no_more_is_kept_than_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "MOST_FREE", 2)
    assert MOST_FREE > 2
    async with serving(tmp_path / "s.sock") as (server, uplinks):
        used = [await uplinks.send(ASKED) for _ in range(3)]
        for sent in used:
            await whole(sent)
            uplinks.give_back(sent)
        assert len(uplinks._free) == 2
        uplinks.close(free_for_s=60.0)
        assert len(uplinks._free) == 2
        uplinks.close()
        async with asyncio.timeout(LIMIT_S):
            while server.closed < 3:  # noqa: ASYNC110  # it is the loop that brings it
                await asyncio.sleep(0)


async def test_the_end_is_told_to_who_waits_for_it_alone(tmp_path: Path) -> None:
    for answer in (OK, b"nonsense\r\n\r\n"):
        async with serving(tmp_path / f"{len(answer)}.sock", answer) as (_, uplinks):
            sent = await uplinks.send(ASKED)
            over = sent.over()
            assert not over.done()
            async with asyncio.timeout(LIMIT_S):
                await over
            assert sent.over() is over
            uplinks.give_back(sent)
