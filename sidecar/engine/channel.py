"""The engine's end of the socketpair to its front: commands in, reports out. Blocking; the engine has no event loop."""

import select
import socket
from typing import Final

from sidecar.wire.frames import Command, FrameReader, Report, encode_frame

_READ_BYTES: Final = 1 << 20


class FrontGoneError(Exception):
    """The front closed its end: there is nobody to work for."""


class Channel:
    """Mutable: the frame reader's buffer."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._reader: FrameReader[Command] = FrameReader(Command)  # type: ignore[arg-type]  # a union stands for its members

    def receive(self, wait_s: float) -> list[Command]:
        """The commands that are here; waits up to `wait_s` for a first one. Raises FrontGoneError."""
        commands: list[Command] = []
        while select.select([self._socket], [], [], wait_s)[0]:
            try:
                data = self._socket.recv(_READ_BYTES)
            except ConnectionError as exc:
                raise FrontGoneError from exc
            if not data:
                raise FrontGoneError
            commands += self._reader.feed(data)
            wait_s = 0.0
        return commands

    def send(self, report: Report) -> None:
        """Raises FrontGoneError."""
        try:
            self._socket.sendall(encode_frame(report))
        except ConnectionError as exc:
            raise FrontGoneError from exc
