"""The front's end of the engine process: starts it, sends it commands, reads its reports, ends it.

One object is one process, from its start to its end; starting another in its place is the supervisor's business.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final, Self

import msgspec

from sidecar.child import start_child
from sidecar.engine.config import EngineConfig
from sidecar.wire.frames import Command, FrameReader, FrameTooLargeError, Report, Shutdown, encode_frame

# An engine that takes nothing more is stalled; what waits for it must not fill the front's memory meanwhile.
MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 256 * 1024


class EngineUnreachableError(Exception):
    """The process is gone."""


class EngineProtocolError(Exception):
    """The process sent something that is no frame of `sidecar.wire.frames`."""


class EngineProcess:
    """A running engine process. Made by `start`; `terminate` it in the end, whatever happens."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(
        cls, config: EngineConfig, program: Sequence[str] = (sys.executable, "-m", "sidecar.engine")
    ) -> Self:
        """Start `program` with one end of a socketpair. Its stdout and stderr are ours. Raises OSError."""
        child = await start_child(program, ("--config", msgspec.json.encode(config).decode()), _READ_BYTES)
        return cls(child.process, child.reader, child.writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def congested(self) -> bool:
        """Whether so much waits to be sent that nothing should be added."""
        return self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES

    def send(self, command: Command) -> None:
        """Queue a command. Raises EngineUnreachableError if the process has hung up."""
        if self._writer.transport.is_closing():
            raise EngineUnreachableError("the engine process is gone")
        self._writer.write(encode_frame(command))

    async def reports(self) -> AsyncIterator[Report]:
        """What the engine says, until its end. Raises EngineProtocolError."""
        # msgspec takes a union for a type, which mypy cannot say.
        frames: FrameReader[Report] = FrameReader(Report)  # type: ignore[arg-type]
        while data := await self._read():
            try:
                messages = frames.feed(data)
            except (FrameTooLargeError, msgspec.DecodeError) as exc:
                raise EngineProtocolError(str(exc)) from exc
            for message in messages:
                yield message

    async def terminate(self, grace_s: float) -> int:
        """End the process and give its exit code: it is asked first, and killed after `grace_s` seconds."""
        try:
            if grace_s > 0:
                with contextlib.suppress(EngineUnreachableError):
                    self.send(Shutdown())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        return await self._process.wait()
        finally:
            # Before any await: a second cancellation must not leave the process behind.
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            # Not closed but dropped: what is unsent to a dead process would never drain.
            self._writer.transport.abort()
        return await self._process.wait()

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_READ_BYTES)
        except ConnectionError:
            # A process that is killed with commands unread resets the connection; it ended, one way or the other.
            return b""
