"""From how many addresses each key was used within the hour: one that is used from many may have leaked. Only counts.

A network of IPv6 counts as one address. Bounded over all keys: beyond that what was seen the longest ago is forgotten.
"""

from collections import OrderedDict
from typing import Final

from proxy.addresses import neighbourhood
from proxy.clock import Clock

WINDOW_S: Final = 3600.0
MOST_SEEN: Final = 100_000


class Origins:
    """Mutable: `_seen`, when a key last came from an address, the last one last; `_counts`, by key, without the zeros;
    `_told`, the keys of which was told, until they have come from nowhere for an hour.
    """

    def __init__(self, clock: Clock, most: int = MOST_SEEN) -> None:
        self._clock = clock
        self._most = most
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._told: dict[str, float] = {}

    def came(self, key_id: str, address: str) -> int:
        """Note it, and give from how many addresses the key came within the hour."""
        now_s = self._clock.monotonic()
        one = (key_id, neighbourhood(address))
        if one not in self._seen:
            self._counts[key_id] = self._counts.get(key_id, 0) + 1
        self._seen[one] = now_s
        self._seen.move_to_end(one)
        while len(self._seen) > self._most or next(iter(self._seen.values())) <= now_s - WINDOW_S:
            (old, _), _ = self._seen.popitem(last=False)
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]
                self._told.pop(old, None)
        return self._counts[key_id]

    def to_be_told(self, key_id: str) -> bool:
        """Whether nothing was told of the key for an hour; from now on it was."""
        now_s = self._clock.monotonic()
        if now_s - self._told.get(key_id, -WINDOW_S) < WINDOW_S:
            return False
        self._told[key_id] = now_s
        return True
