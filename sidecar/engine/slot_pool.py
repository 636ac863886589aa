"""Which places of the KV cache are taken, and how many tokens they may hold together. Pure bookkeeping.

A slot is one sequence's contiguous place in the cache; the lowest free one is given out, so that the running sequences
stand side by side and attention reads them as one view.
"""

import heapq
from collections.abc import Callable


class SlotPool:
    """Mutable: `_free` (a heap of free slots), `used_tokens` (held by all sequences)."""

    def __init__(self, slots: int, capacity_tokens: int, on_release: Callable[[int], None] = lambda _: None) -> None:
        """`on_release` is told of each slot that is given back."""
        self.slots = slots
        self.capacity_tokens = capacity_tokens
        self.used_tokens = 0
        self._free = list(range(slots))
        self._on_release = on_release

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free)

    @property
    def room_tokens(self) -> int:
        """How many more tokens may be held."""
        return self.capacity_tokens - self.used_tokens

    def take(self) -> int:
        """The lowest free slot. Raises IndexError if there is none."""
        return heapq.heappop(self._free)

    def hold(self, tokens: int) -> None:
        """Count tokens that a sequence is about to write."""
        self.used_tokens += tokens

    def release(self, slot: int, tokens: int) -> None:
        """Give a slot back with the tokens that were held in it."""
        self.used_tokens -= tokens
        heapq.heappush(self._free, slot)
        self._on_release(slot)
