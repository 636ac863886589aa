"""The policy of now: read again when its files change or when told to, and swapped as one immutable snapshot.

1. A change is read once the files have rested for a look: what is being written, or copied, is not read by half.
2. Names, sizes, times and inodes are looked at through symbolic links, as a Kubernetes volume has them.
3. Files that moved while they were read are read again at the next look: a policy is never of two changes.
4. A policy that cannot be read changes nothing: the last good one stays, and what is wrong is told once.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from proxy.policy.load import load_policy
from proxy.policy.schema import Policy
from sidecar.yamlfile import ConfigInvalidError, Problem

LOOK_EVERY_S: Final = 1.0

# Of each name in the folder: device, inode, size, and the times of the last change of content and of anything.
Prints = tuple[tuple[str, int, int, int, int, int], ...]


class Observer(Protocol):
    """Who is told of each reading: `proxy.reloads.Reloads`."""

    def loaded(self, policy: Policy, before: Policy | None) -> None: ...
    def refused(self, problems: Sequence[Problem], exc: Exception, current: Policy) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in the folder: a policy, or why there is none."""

    prints: Prints
    found: Policy | Exception


class PolicyWatch:
    """The owner of the policy. Called, it gives the policy of now.

    Mutable: `_policy`; `_read`, the prints of the files that were read last; `_resting`, the prints of a change that is
    waited for; `problems`, what is wrong with the files as they are, if they are not the policy.
    """

    def __init__(self, folder: Path, first: Reading, observer: Observer) -> None:
        """`first` is the folder's, from `read`. Raises what is wrong with it: there is no policy to fall back on."""
        if isinstance(first.found, Exception):
            raise first.found
        self._folder = folder
        self._observer = observer
        self._policy = first.found
        self._read = first.prints
        self._resting: Prints | None = None
        self.problems: tuple[Problem, ...] = ()
        observer.loaded(first.found, None)

    def __call__(self) -> Policy:
        return self._policy

    async def run(self, told: asyncio.Event) -> None:
        """Look for ever, and at once when told to: then the files are read whether they changed or not."""
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await told.wait()
            except TimeoutError:
                wanted = False
            else:
                told.clear()
                wanted = True
            reading = await asyncio.to_thread(self.look, wanted=wanted)
            if reading is not None:
                self.take(reading)

    def look(self, *, wanted: bool = False) -> Reading | None:
        """A reading, if there is reason for one. Blocks; changes only what is waited for."""
        prints = take_prints(self._folder)
        if not wanted and prints == self._read:
            self._resting = None
            return None
        if not wanted and prints != self._resting:
            self._resting = prints
            return None
        reading = read(self._folder)
        after = take_prints(self._folder)
        self._resting = None if after == reading.prints else after
        return reading if after == reading.prints else None

    def take(self, reading: Reading) -> None:
        """Make a reading's policy the policy, or say why not."""
        self._read = reading.prints
        if isinstance(reading.found, Policy):
            before, self.problems = self._policy, ()
            if reading.found.revision != before.revision:
                self._policy = reading.found
            self._observer.loaded(self._policy, before)
            return
        told = reading.found
        self.problems = tuple(told.problems) if isinstance(told, ConfigInvalidError) else (_unexpected(self._folder),)
        self._observer.refused(self.problems, told, self._policy)


def read(folder: Path) -> Reading:
    """The folder as it is. What changes meanwhile has other prints than these at the next look."""
    prints = take_prints(folder)
    try:
        return Reading(prints, load_policy(folder))
    except Exception as exc:  # noqa: BLE001 - the boundary: no file whatever may end the watch
        return Reading(prints, exc)


def take_prints(folder: Path) -> Prints:
    """What tells a change without reading: empty if there is no such folder, or file."""
    if folder.is_file():
        return (_print(folder),)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return ()
    return tuple(_print(folder / name) for name in names)


def _print(path: Path) -> tuple[str, int, int, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        # A link to nothing, or a file that has just gone: another print than any file has.
        return path.name, 0, 0, 0, 0, 0
    return path.name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _unexpected(folder: Path) -> Problem:
    return Problem(str(folder), 0, 0, "cannot be read, for a reason that this version does not expect")
