"""The connection to a sidecar, with a server at its other end that says what the test wants it to say."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy import uplink
from proxy.answers import BrokenOffError
from proxy.uplink import MOST_KEPT_BYTES, AbsentError, Uplink, request, send

ASKED = request("POST", "/v1/x", {"x-one": "1"}, b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def asked(path: Path, serve: Serve) -> AsyncIterator[Uplink]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await serve(reader, writer)

    async with await asyncio.start_unix_server(served, path):
        sent = await send(str(path), ASKED, 1.0)
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
    assert ASKED == (
        b"POST /v1/x HTTP/1.1\r\nhost: sidecar\r\nconnection: close\r\ncontent-length: 2\r\nx-one: 1\r\n\r\n{}"
    )
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
        await send(str(tmp_path / "s.sock"), ASKED, 1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(AbsentError):
        await send(str(tmp_path / "file"), ASKED, 1.0)


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
            await send(str(tmp_path / "s.sock"), ASKED, 1.0)
        await left.wait()
    assert not heard
