"""How much of the memory that this process could have it has: what is asked before new work is taken.

The bound is the tightest of the machine and of the control groups that the process is in. What counts is this process'
own share, own / (own + what is left): a machine that others fill is no reason to turn clients away as long as there is
enough for us, and one that is full is, whoever filled it.
"""

import asyncio
from pathlib import Path
from typing import Final

from sidecar.headroom import CGROUPS, PROC, field_bytes, left_bytes
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, unavailable

EVERY_S: Final = 1.0
RETRY_S: Final = 1.0


class Memory:
    """The last reading. Mutable: `percent`, of what this process could have; 0 where that cannot be read."""

    def __init__(self, *, requests_percent: float, connections_percent: float) -> None:
        self._requests_percent = requests_percent
        self._connections_percent = connections_percent
        self.percent = 0.0

    def note(self, percent: float, log: JsonLog) -> None:
        """Take a reading. A change of mind is told."""
        before, self.percent = self.no_requests(), percent
        if self.no_requests() != before:
            event = "memory_recovered" if before else "memory_low"
            log.warning(event, percent=round(percent), hint="See limits.memory_for_requests_percent.")

    def no_requests(self) -> bool:
        """Whether no new work may be taken."""
        return self.percent >= self._requests_percent

    def refusal(self) -> ApiError | None:
        """What a request is told, if it may not be taken."""
        return overloaded() if self.no_requests() else None

    def no_connections(self) -> bool:
        """Whether not even a connection may be taken."""
        return self.percent >= self._connections_percent


def overloaded() -> ApiError:
    """What whoever comes to a full house is told."""
    return unavailable(
        "The server is overloaded. Please try again in a moment.", code="server_is_overloaded", retry_after_s=RETRY_S
    )


async def watch(memory: Memory, log: JsonLog, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
    """Read once a second, for ever, in a thread."""
    while True:
        try:
            percent = await asyncio.to_thread(read_percent, proc, cgroups)
        except (OSError, ValueError) as exc:
            # Without /proc there is nothing to go by, today and tomorrow.
            log.exception("memory_unknown", exc)
            return
        memory.note(percent, log)
        await asyncio.sleep(EVERY_S)


def read_percent(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Raises OSError or ValueError where the machine does not tell."""
    own = field_bytes(proc / "self/status", "VmRSS")
    return 100 * own / (own + left_bytes(proc, cgroups)) if own else 0.0
