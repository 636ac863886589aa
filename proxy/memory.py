"""How much of the memory that this process could have it has: what is asked before new work is taken.

The bound is the tightest of the machine and of the control groups that the process is in. What counts is this process'
own share, own / (own + what is left): a machine that others fill is no reason to turn clients away as long as there is
enough for us, and one that is full is, whoever filled it.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, unavailable

EVERY_S: Final = 1.0
RETRY_S: Final = 1.0
PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Files:
    """A control group's files, by the names that cgroup v1 or v2 has for them."""

    limit: str
    used: str
    # A file cache that the kernel would drop before it kills anybody.
    cache: str


V2: Final = Files("memory.max", "memory.current", "inactive_file")
V1: Final = Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


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
    own = _kilobytes(proc / "self/status", "VmRSS")
    left = min(_kilobytes(proc / "meminfo", "MemAvailable"), *_left_in_groups(proc, cgroups))
    return 100 * own / (own + max(0, left)) if own else 0.0


def _kilobytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{path} has no {name}")


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each limited group on the way to the root has left. Always a number, for `min`."""
    yield 1 << 62
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            root, files = (cgroups, V2) if controllers == "" else (cgroups / "memory", V1)
            group = root / path.lstrip("/")
            # In a container the path is often the host's: then the root is the container's own group.
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield from _left(folder, files)


def _left(folder: Path, files: Files) -> Iterator[int]:
    try:
        limit = (folder / files.limit).read_text().strip()
        used = int((folder / files.used).read_text())
        cached = _stat(folder / "memory.stat", files.cache)
    except FileNotFoundError:
        # The root group has none, and what is not mounted here is not ours to read.
        return
    if limit != "max":
        yield int(limit) - used + cached


def _stat(path: Path, name: str) -> int:
    found = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) for words in found if words[0] == name), 0)
