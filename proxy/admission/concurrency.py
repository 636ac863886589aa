"""How many requests of a key run at once: leases, each given back exactly once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConcurrencyLook:
    """Whether one more fits. A limit of None is no limit."""

    limit: int | None
    running: int

    @property
    def fits(self) -> bool:
        return self.limit is None or self.running < self.limit


class Leases:
    """The running requests of each key. Mutable: `_running`, by key id, without the zeros."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        """How many leases are out, over all keys."""
        return sum(self._running.values())

    def running(self, key_id: str) -> int:
        return self._running.get(key_id, 0)

    def fits(self, key_id: str, limit: int) -> bool:
        return self._running.get(key_id, 0) < limit

    def peek(self, key_id: str, limit: int | None) -> ConcurrencyLook:
        return ConcurrencyLook(limit, self.running(key_id))

    def take(self, key_id: str) -> "Lease":
        """Take one, whether it fits or not: the caller has looked."""
        self._running[key_id] = self.running(key_id) + 1
        return Lease(self, key_id)

    def give_back(self, key_id: str) -> None:
        """For `Lease` only."""
        left = self._running[key_id] - 1
        if left:
            self._running[key_id] = left
        else:
            del self._running[key_id]


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
