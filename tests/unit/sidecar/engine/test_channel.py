"""Commands and reports over a real socketpair, and what an end of it means."""

import socket
from collections.abc import Iterator

import pytest

from sidecar.engine.channel import Channel, FrontGoneError
from sidecar.wire.frames import Cancel, Failed, FrameReader, Report, Shutdown, encode_frame


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    front, engine = socket.socketpair()
    with front, engine:
        yield front, engine


def test_commands_that_came_in_pieces_are_read_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    front, engine = pair
    channel = Channel(engine)
    data = encode_frame(Cancel("a", 0)) + encode_frame(Shutdown())
    front.sendall(data[:7])
    assert channel.receive(0.0) == []
    front.sendall(data[7:])
    assert channel.receive(0.0) == [Cancel("a", 0), Shutdown()]
    assert channel.receive(0.0) == []


def test_a_report_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    front, engine = pair
    Channel(engine).send(Failed("why"))
    reader: FrameReader[Report] = FrameReader(Report)  # type: ignore[arg-type]  # a union stands for its members
    assert reader.feed(front.recv(4096)) == [Failed("why")]


def test_a_front_that_is_gone_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    front, engine = pair
    channel = Channel(engine)
    front.close()
    with pytest.raises(FrontGoneError):
        channel.receive(1.0)
    with pytest.raises(FrontGoneError):
        channel.send(Failed("why"))
