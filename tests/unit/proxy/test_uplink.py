"""The connection to a sidecar, with a server at its other end that says what the test wants it to say."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy import uplink
from proxy.answers import BrokenOffError
from proxy.simulation.time import JumpingLoop
from proxy.uplink import MOST_KEPT_BYTES, AbsentError, Uplink, Uplinks, request
from tests.fakes.waiting import LIMIT_S

ASKED = request("POST", "/v1/x", {"x-one": "1"}, b"{}")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def asked(path: Path, serve: Serve) -> AsyncIterator[Uplink]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await serve(reader, writer)

    async with await asyncio.start_unix_server(served, path):
        sent = await Uplinks(str(path), LIMIT_S).send(ASKED)
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
    while piece := await sent.piece(LIMIT_S):
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
        assert (await sent.head(LIMIT_S)).status == 200
        assert await whole(sent) == b"ok"
        assert await sent.piece(LIMIT_S) == b""
    assert await heard == ASKED


async def test_pieces_are_given_as_they_come(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    async with asked(tmp_path / "s.sock", serve) as sent:
        await sent.head(LIMIT_S)
        assert await sent.piece(LIMIT_S) == b"a"
        go_on.set()
        assert await whole(sent) == b"b"


async def test_a_body_lasts_until_the_connection_ends_if_it_has_no_length(tmp_path: Path) -> None:
    async with asked(tmp_path / "s.sock", says(b"HTTP/1.1 200 OK\r\n\r\nok")) as sent:
        assert (await sent.head(LIMIT_S)).status == 200
        assert await whole(sent) == b"ok"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
async def test_no_head_is_broken_off(tmp_path: Path, said: bytes) -> None:
    async with asked(tmp_path / "s.sock", says(said)) as sent:
        with pytest.raises(BrokenOffError):
            await sent.head(LIMIT_S)


async def test_a_break_is_told_before_what_nobody_has_taken_yet(tmp_path: Path) -> None:
    here = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await here.wait()
        writer.write(b"what\r\n")

    async with asked(tmp_path / "s.sock", serve) as sent:
        assert (await sent.head(LIMIT_S)).status == 200
        here.set()
        while sent._error is None:  # noqa: ASYNC110  # it is the loop that brings it
            await asyncio.sleep(0)
        with pytest.raises(BrokenOffError):
            await sent.piece(LIMIT_S)


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
        await sent.head(LIMIT_S)
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
        await sent.head(LIMIT_S)
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
        waiting = asyncio.create_task(sent.head(LIMIT_S))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(LIMIT_S):
        await left.wait()


async def test_nobody_there_is_absent(tmp_path: Path) -> None:
    with pytest.raises(AbsentError):
        await Uplinks(str(tmp_path / "s.sock"), LIMIT_S).send(ASKED)
    (tmp_path / "file").write_text("")
    with pytest.raises(AbsentError):
        await Uplinks(str(tmp_path / "file"), LIMIT_S).send(ASKED)


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
            await Uplinks(str(tmp_path / "s.sock"), LIMIT_S).send(ASKED)
        await left.wait()
    assert not heard


async def test_each_piece_is_given_as_it_comes_until_no_more_is_wanted(tmp_path: Path) -> None:
    came: asyncio.Queue[bytes] = asyncio.Queue()
    taken: list[bytes] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for word in (b"a", b"b", b"c", b"d"):
            writer.write(b"1\r\n" + word + b"\r\n")
            assert await came.get() == word
        writer.write(b"0\r\n\r\n")

    def take(piece: bytes) -> bool:
        taken.append(piece)
        came.put_nowait(piece)
        return piece != b"b"

    async with asked(tmp_path / "s.sock", serve) as sent:
        await sent.head(LIMIT_S)
        assert await sent.each(take, LIMIT_S)
        assert taken == [b"a", b"b"]
        assert not await sent.each(take, LIMIT_S)
        assert taken == [b"a", b"b", b"c", b"d"]
        assert not await sent.each(take, LIMIT_S)


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"what\r\n"])
async def test_an_end_that_comes_with_the_last_piece_is_not_waited_for(tmp_path: Path, end: bytes) -> None:
    async with asked(tmp_path / "s.sock", says(CHUNKED + b"1\r\na\r\n" + end)) as sent:
        if end.startswith(b"0"):
            assert not await sent.each(lambda _: True, LIMIT_S)
        else:
            with pytest.raises(BrokenOffError):
                await sent.each(lambda _: True, LIMIT_S)


async def test_what_comes_after_no_more_is_wanted_waits(tmp_path: Path) -> None:
    async with asked(tmp_path / "s.sock", says(CHUNKED + b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n")) as sent:
        assert await sent.each(lambda _: False, LIMIT_S)
        for _turn in range(50):
            await asyncio.sleep(0)
        assert sent._kept <= 1
        assert (await whole(sent)) in (b"", b"b")


class RefusedError(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1])
async def test_what_is_raised_of_a_piece_is_raised_where_it_is_waited_for(tmp_path: Path, at: int) -> None:
    go_on = asyncio.Event()
    taken: list[bytes] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    def take(piece: bytes) -> bool:
        go_on.set()
        taken.append(piece)
        if len(taken) > at:
            raise RefusedError
        return True

    async with asked(tmp_path / "s.sock", serve) as sent:
        with pytest.raises(RefusedError):
            await sent.each(take, LIMIT_S)
    assert len(taken) == at + 1


def test_silence_between_pieces_has_a_limit_that_each_of_them_puts_off(tmp_path: Path) -> None:
    taken: list[float] = []
    over = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _number in range(4):
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(30)
        await over.wait()

    def take(_: bytes) -> bool:
        taken.append(asyncio.get_running_loop().time())
        return True

    async def silent() -> None:
        async with asked(tmp_path / "s.sock", serve) as sent:
            with pytest.raises(TimeoutError):
                await sent.each(take, 80)
            taken.append(asyncio.get_running_loop().time())
            over.set()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(silent())
    assert taken == [pytest.approx(moment_s) for moment_s in (0, 30, 60, 90, 170)]


async def test_a_connection_that_breaks_between_pieces_is_told(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()

    def take(_: bytes) -> bool:
        go_on.set()
        return True

    async with asked(tmp_path / "s.sock", serve) as sent:
        with pytest.raises(BrokenOffError):
            await sent.each(take, LIMIT_S)


async def test_who_is_given_pieces_can_be_cancelled_and_is_given_no_more(tmp_path: Path) -> None:
    here, go_on = asyncio.Event(), asyncio.Event()
    taken: list[bytes] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()
        writer.write(b"1\r\nb\r\n")

    def take(piece: bytes) -> bool:
        taken.append(piece)
        here.set()
        return True

    async with asked(tmp_path / "s.sock", serve) as sent:
        waiting = asyncio.create_task(sent.each(take, LIMIT_S))
        await here.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        assert await sent.piece(LIMIT_S) == b"b"
    assert taken == [b"a"]


async def test_connections_are_counted_by_whether_a_request_runs_on_them(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await go_on.wait()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s.sock"):
        uplinks = Uplinks(str(tmp_path / "s.sock"), LIMIT_S)
        assert uplinks.counts == (0, 0)
        first, second = [await uplinks.send(ASKED) for _ in range(2)]
        assert uplinks.counts == (2, 0)
        await first.head(LIMIT_S)
        assert await whole(first) == b"ok"
        uplinks.give_back(first)
        # This one's answer was not read: it is broken off.
        uplinks.give_back(second)
        assert uplinks.counts == (0, 1)
        await uplinks.send(ASKED)
        assert uplinks.counts == (1, 0)
        go_on.set()


async def test_what_was_never_connected_is_not_counted(tmp_path: Path) -> None:
    uplinks = Uplinks(str(tmp_path / "s.sock"), LIMIT_S)
    with pytest.raises(AbsentError):
        await uplinks.send(ASKED)
    assert uplinks.counts == (0, 0)
