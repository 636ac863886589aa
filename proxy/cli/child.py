"""One server that `tollhouse up` runs: its process, its log file, and what its JSON log lines have said so far."""

import asyncio
import contextlib
import json
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from proxy.cli.sidecar_command import leashed

FOLLOW_S: Final = 0.1
LAST_LINES: Final = 12
# Said in each line, and of no use to someone who reads the end of one log.
_UNSAID: Final = frozenset({"time", "level", "event", "pid", "boot_id", "logger"})


class Child:
    """Mutable: `_process`, `_offset` (how much of the log is read), `_rest` (its last, unfinished line), `_events`
    (the first and the newest line of each event), `_last` (the newest lines); `_reading` guards the last four.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._reading = asyncio.Lock()
        self._offset = 0
        self._rest = b""
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    async def start(self) -> None:
        """Start it in a session of its own, so that the terminal's Ctrl-C is ours to pass on, in order."""
        descriptor = await asyncio.to_thread(self._fresh_log)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *leashed(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    def _fresh_log(self) -> int:
        """A new log file; the one before is kept beside it, since it may tell why that start ended."""
        with contextlib.suppress(FileNotFoundError):
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        return 0 if self._process is None else await self._process.wait()

    async def stop(self, limit_s: float) -> bool:
        """End it as SIGTERM does, and as SIGKILL does once the limit is over. Whether it ended well."""
        if not self.running:
            return True
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(limit_s):
                # By the signal itself: it came before there was anything to be ended in order.
                return await self.ended() in {0, -signal.SIGTERM}
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.ended()
            return False

    async def follow(self, echo: Callable[[str], None] | None = None) -> None:
        """Read the log as it grows, for ever."""
        while True:
            await self.catch_up(echo)
            await asyncio.sleep(FOLLOW_S)

    def said(self, name: str) -> dict[str, Any]:
        """The first log line of an event that was read; empty if there was none."""
        return self._events.get(name, [{}])[0]

    def says(self, name: str) -> dict[str, Any]:
        """The newest log line of an event that was read; empty if there was none."""
        return self._events.get(name, [{}])[-1]

    async def catch_up(self, echo: Callable[[str], None] | None = None) -> None:
        """Read what the log has grown by."""
        async with self._reading:
            await asyncio.to_thread(self._read, echo)

    def _read(self, echo: Callable[[str], None] | None) -> None:
        try:
            with self.log.open("rb") as file:
                file.seek(self._offset)
                grown = file.read()
        except FileNotFoundError:
            # Somebody moved it away: what is written there now is not read, and the server goes on.
            return
        self._offset += len(grown)
        *lines, self._rest = (self._rest + grown).split(b"\n")
        for raw in lines:
            line = raw.decode(errors="replace")
            self._note(line)
            if echo is not None:
                echo(readable(line))

    def _note(self, line: str) -> None:
        self._last.append(line)
        said = _parsed(line)
        if isinstance(event := said.get("event"), str):
            self._events.setdefault(event, [said])[1:] = [said]

    async def last_words(self) -> str:
        """The end of its log, for people."""
        await self.catch_up()
        lines = [*self._last, self._rest.decode(errors="replace")]
        return "\n".join(f"  {readable(line)}" for line in lines if line.strip())


def readable(line: str) -> str:
    """A JSON log line for people; any other line as it is."""
    said = _parsed(line)
    if "event" not in said:
        return line
    fields = " ".join(f"{name}={_short(value)}" for name, value in said.items() if name not in _UNSAID)
    return f"{str(said.get('time', ''))[11:19]} {said.get('level', ''):<7} {said['event']} {fields}".rstrip()


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
