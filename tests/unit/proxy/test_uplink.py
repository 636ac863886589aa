"""The connection to a sidecar, with a server at its other end that says what the test wants it to say."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy import uplink
from proxy.answers import BrokenOffError
from proxy.uplink import MOST_FREE, MOST_KEPT_BYTES, AbsentError, Uplink, Uplinks, request

ASKED = request("POST", "/v1/x", {"x-one": "1"}, b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def asked(path: Path, serve: Serve) -> AsyncIterator[Uplink]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await serve(reader, writer)

    async with await asyncio.start_unix_server(served, path):
        sent = await Uplinks(str(path), 1.0).send(ASKED)
        try:
            yield sent
        finally:
            sent.close()


def says(*answers: bytes) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            writer.write(answer)
            await writer.drain()

    return serve


async def whole(sent: Uplink) -> bytes:
    pieces = []
    while piece := await sent.piece(1.0):
        pieces.append(piece)
    return b"".join(pieces)


def test_a_request_is_its_own_head_and_body() -> None:
    assert ASKED == (b"POST /v1/x HTTP/1.1\r\nhost: sidecar\r\ncontent-length: 2\r\nx-one: 1\r\n\r\n{}")
    assert b"content-length" not in request("GET", "/", {}, None)


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "a\0b"])
def test_w1_a_header_that_would_be_two_is_not_sent(value: str) -> None:
    with pytest.raises(ValueError, match="line"):
        request("POST", "/", {"x": value}, b"")


async def test_what_is_sent_is_the_request(tmp_path: Path) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.readexactly(len(ASKED)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with asked(tmp_path / "s.sock", serve) as sent:
        assert (await sent.head(1.0)).status == 200
        assert await whole(sent) == b"ok"
        assert await sent.piece(1.0) == b""
    assert await heard == ASKED


async def test_pieces_are_given_as_they_come(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    async with asked(tmp_path / "s.sock", serve) as sent:
        await sent.head(1.0)
        assert await sent.piece(1.0) == b"a"
        go_on.set()
        assert await whole(sent) == b"b"


async def test_a_body_lasts_until_the_connection_ends_if_it_has_no_length(tmp_path: Path) -> None:
    async with asked(tmp_path / "s.sock", says(b"HTTP/1.1 200 OK\r\n\r\nok")) as sent:
        assert (await sent.head(1.0)).status == 200
        assert await whole(sent) == b"ok"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
async def test_no_head_is_broken_off(tmp_path: Path, said: bytes) -> None:
    async with asked(tmp_path / "s.sock", says(said)) as sent:
        with pytest.raises(BrokenOffError):
            await sent.head(1.0)


async def test_a_break_is_told_before_what_nobody_has_taken_yet(tmp_path: Path) -> None:
    here = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await here.wait()
        writer.write(b"what\r\n")

    async with asked(tmp_path / "s.sock", serve) as sent:
        assert (await sent.head(1.0)).status == 200
        here.set()
        while sent._error is None:  # noqa: ASYNC110  # it is the loop that brings it
            await asyncio.sleep(0)
        with pytest.raises(BrokenOffError):
            await sent.piece(1.0)


async def test_silence_has_a_limit_before_the_head_and_after_it(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await never.wait()
        writer.write(CHUNKED)
        await asyncio.sleep(10)

    async with asked(tmp_path / "s.sock", serve) as sent:
        with pytest.raises(TimeoutError):
            await sent.head(0.01)
        never.set()
        await sent.head(5.0)
        with pytest.raises(TimeoutError):
            await sent.piece(0.01)


async def test_an_answer_that_nobody_takes_stays_in_the_socket(tmp_path: Path) -> None:
    size, sent_bytes = 64 * 1024, 0
    go_on = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * size))
        for _number in range(200):
            writer.write(b"x" * size)
            await writer.drain()
            sent_bytes += size
            go_on.set()

    async with asked(tmp_path / "s.sock", serve) as sent:
        await sent.head(1.0)
        await go_on.wait()
        for _turn in range(300):
            await asyncio.sleep(0)
        assert sent._kept <= MOST_KEPT_BYTES + size * 4
        assert sent_bytes < 200 * size
        assert len(await whole(sent)) == 200 * size


async def test_who_waits_can_be_cancelled_and_the_connection_closed(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        left.set()

    async with asked(tmp_path / "s.sock", serve) as sent:
        waiting = asyncio.create_task(sent.head(5.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5):
        await left.wait()


async def test_nobody_there_is_absent(tmp_path: Path) -> None:
    with pytest.raises(AbsentError):
        await Uplinks(str(tmp_path / "s.sock"), 1.0).send(ASKED)
    (tmp_path / "file").write_text("")
    with pytest.raises(AbsentError):
        await Uplinks(str(tmp_path / "file"), 1.0).send(ASKED)


async def test_f14_another_user_s_socket_is_not_spoken_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            heard.extend(await reader.read())
        left.set()

    left = asyncio.Event()
    monkeypatch.setattr(uplink, "peer_uid", lambda _: 12345)
    async with await asyncio.start_unix_server(serve, tmp_path / "s.sock"):
        with pytest.raises(AbsentError, match="another user"):
            await Uplinks(str(tmp_path / "s.sock"), 1.0).send(ASKED)
        await left.wait()
    assert not heard


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
        uplinks = Uplinks(str(path), 1.0)
        try:
            yield server, uplinks
        finally:
            uplinks.close()


async def exchange(uplinks: Uplinks) -> bytes:
    sent = await uplinks.send(ASKED)
    try:
        await sent.head(1.0)
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
        await sent.head(1.0)
        uplinks.give_back(sent)
        assert await exchange(uplinks) == b"ok"
        assert len(server.writers) == 2
        async with asyncio.timeout(5):
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
            await sent.head(1.0)
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
        async with asyncio.timeout(5):
            while server.closed < 3:  # noqa: ASYNC110  # it is the loop that brings it
                await asyncio.sleep(0)


async def test_the_end_is_told_to_who_waits_for_it_alone(tmp_path: Path) -> None:
    for answer in (OK, b"nonsense\r\n\r\n"):
        async with serving(tmp_path / f"{len(answer)}.sock", answer) as (_, uplinks):
            sent = await uplinks.send(ASKED)
            over = sent.over()
            assert not over.done()
            async with asyncio.timeout(5):
                await over
            assert sent.over() is over
            uplinks.give_back(sent)
