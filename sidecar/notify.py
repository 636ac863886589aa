"""What systemd is told of a service, by sd_notify(3): ready, reading again, ending, and, for its watchdog, alive.

A leaf for both processes. A process that no service manager started has nobody to tell, and sends nothing.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from sidecar.jsonlog import JsonLog

# Of the watchdog's time: systemd advises two signs of life in it, and one may be lost.
_BEATS: Final = 3


class Notifier:
    """Mutable: `_ready`, set once it serves; `_rereading`, from being told to read again until it is done."""

    def __init__(
        self,
        environment: Mapping[str, str],
        log: JsonLog,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # In the abstract namespace the name begins with a null byte, which a variable cannot hold.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._beat_s = _watchdog_s(environment) / _BEATS
        self._log = log
        self._sleep = sleep
        self._monotonic_ns = monotonic_ns
        self._ready = asyncio.Event()
        self._rereading = False

    def ready(self, status: str) -> None:
        """It serves. `status` is what `systemctl status` shows."""
        self._tell("READY=1", f"STATUS={status}")
        self._ready.set()

    def rereading(self) -> None:
        """What it was started with is read again."""
        self._rereading = True
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def reread(self) -> None:
        """It was read, whatever came of it. Says nothing if nobody asked."""
        if self._rereading:
            self._rereading = False
            self._tell("READY=1")

    def stopping(self) -> None:
        """It takes nothing new."""
        self._tell("STOPPING=1", "STATUS=Ending what runs.")

    async def beat(self, lives: Callable[[], bool]) -> None:
        """From `ready` on, say for ever that this loop turns, as long as `lives`. Ends where there is no watchdog.

        Nobody listens before: the manager reads ten datagrams late at most, and readiness must be among them.
        """
        await self._ready.wait()
        while self._beat_s:
            if lives():
                self._tell("WATCHDOG=1")
            await self._sleep(self._beat_s)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
            speaking.setblocking(False)
            try:
                speaking.sendto("\n".join(lines).encode(), self._address)
            except OSError as exc:
                self._log.warning("notify_failed", reason=os.strerror(exc.errno or 0), message=lines[0])


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """How long systemd waits for a sign of life; 0 is no watchdog, or another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    told = environment.get("WATCHDOG_USEC", "")
    return int(told) / 1e6 if told.isdecimal() else 0.0
