"""How much memory is left: the machine's, or less in a control group. Knows files of Linux, and nothing of who asks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


def left_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """What may still be taken: the least of the machine's and of each control group's that this process is in.

    Raises OSError or ValueError where the machine does not tell.
    """
    return max(0, min(field_bytes(proc / "meminfo", "MemAvailable"), *_left_in_groups(proc, cgroups)))


def field_bytes(path: Path, name: str) -> int:
    """A field of a file of /proc that counts kilobytes. Raises OSError, and ValueError if it has no such field."""
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
