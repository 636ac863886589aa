"""How many requests of a key run at once: leases, each given back exactly once, and the line of who waits for one.

A lease that comes back goes to the first in line before anybody else can see it: who comes later passes nobody, and
who is woken has it already. So nobody waits while a lease is free, and who leaves the line gives back what was handed
to it. Pure and synchronous; the waiting itself is `turn`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec


class ConcurrencyLook(msgspec.Struct, frozen=True):
    """How many run, of how many that may. A limit of None is no limit."""

    limit: int | None
    running: int


@dataclass(slots=True, eq=False)
class Place:
    """A place in a line. Mutable: `lease`, once it was handed over; then `wake` was called."""

    wake: Callable[[], None]
    lease: "Lease | None" = None


@dataclass(slots=True)
class _Line:
    """Who waits for leases of a key. Mutable: `limit`, as last told, and `places`, the first one first."""

    limit: int
    places: dict[Place, None] = field(default_factory=dict)


class Leases:
    """The running requests of each key, and the waiting ones.

    Mutable: `_running`, by what they are counted for, without the zeros; `_lines`, the same without the empty ones.
    """

    def __init__(self) -> None:
        self._running: dict[str, int] = {}
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """How many leases are out, over all keys."""
        return sum(self._running.values())

    def running(self, key_id: str) -> int:
        return self._running.get(key_id, 0)

    def waiting(self, key_id: str) -> int:
        line = self._lines.get(key_id)
        return 0 if line is None else len(line.places)

    def fits(self, key_id: str, limit: int) -> bool:
        """Whether one more may be taken: never past those who wait."""
        return self._running.get(key_id, 0) < limit and key_id not in self._lines

    def peek(self, key_id: str, limit: int | None) -> ConcurrencyLook:
        return ConcurrencyLook(limit, self.running(key_id))

    def take(self, key_id: str) -> "Lease":
        """Take one, whether it fits or not: the caller has looked."""
        self._running[key_id] = self.running(key_id) + 1
        return Lease(self, key_id)

    def line_up(self, key_id: str, limit: int, wake: Callable[[], None]) -> Place:
        """Take the last place in line. If a lease is free it is handed over at once, and `wake` is called."""
        line = self._lines.setdefault(key_id, _Line(limit))
        place = Place(wake)
        line.places[place] = None
        self.limited(key_id, limit)
        return place

    def limited(self, key_id: str, limit: int) -> None:
        """The limit is now this one: if it was raised, who waits need not wait for a lease to come back."""
        line = self._lines.get(key_id)
        if line is not None:
            line.limit = limit
            self._hand_over(key_id, line)

    def step_out(self, key_id: str, place: Place) -> "Lease | None":
        """Leave the line. The lease, if it was handed over, is now the caller's to use or to release."""
        line = self._lines.get(key_id)
        if line is not None and place in line.places:
            del line.places[place]
            if not line.places:
                del self._lines[key_id]
        return place.lease

    def give_back(self, key_id: str) -> None:
        """For `Lease` only."""
        left = self._running[key_id] - 1
        if left:
            self._running[key_id] = left
        else:
            del self._running[key_id]
        line = self._lines.get(key_id)
        if line is not None:
            self._hand_over(key_id, line)

    def _hand_over(self, key_id: str, line: _Line) -> None:
        while line.places and self.running(key_id) < line.limit:
            place = next(iter(line.places))
            del line.places[place]
            place.lease = self.take(key_id)
            place.wake()
        if not line.places:
            del self._lines[key_id]


class Lease:
    """The right to run one request. Mutable: `_held`, until it is released."""

    def __init__(self, leases: Leases, key_id: str) -> None:
        self._leases = leases
        self._key_id = key_id
        self._held = True

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if self._held:
            self._held = False
            self._leases.give_back(self._key_id)
