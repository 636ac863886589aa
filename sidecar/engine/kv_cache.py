"""The KV cache on a CPU: for each layer and each slot a contiguous place for one sequence's keys and values.

The memory is mapped without being reserved: a page costs something once a token was written to it. What ended sequences
have touched is given back to the system when all slots together would hold more than the pool allows.

Beside the slots is a store of blocks of `BLOCK_TOKENS` tokens, for what outlives its sequence (`prefix_cache`).
"""

import mmap
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from sidecar.engine.prefix_cache import BLOCK_TOKENS, Pair

# Linux's MAP_NORESERVE (asm-generic/mman.h); Python 3.11 does not name it. Elsewhere an ordinary map serves.
_NORESERVE: Final = 0x4000 if hasattr(mmap, "MADV_DONTNEED") else 0


class LayerCache:
    """One layer: keys `[slots, kv_heads, context, head_dim]` and values alike, in the model's dtype.

    A head's keys lie side by side, so that a batched product reads them in one go: with 560 tokens a sequence that is
    twice as fast as token by token. Mutable: the two tensors' contents, and their memory; `_kept`, each of them with
    its store, `[blocks, kv_heads, BLOCK_TOKENS, head_dim]`.
    """

    def __init__(self, slots: int, context: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """`key` and `value`, `[tokens, kv_heads, head_dim]`, show the shapes and dtypes to come."""
        self.kv_heads = key.shape[1]
        self.keys, self._key_map = _mapped(slots, context, key)
        self.values, self._value_map = _mapped(slots, context, value)
        self._key_rows = self.keys.view(-1, key.shape[-1])
        self._value_rows = self.values.view(-1, value.shape[-1])
        self._kept: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    @property
    def bytes_per_token(self) -> int:
        return self.kv_heads * sum(rows.shape[1] * rows.element_size() for rows in (self._key_rows, self._value_rows))

    def write(self, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store `[tokens, kv_heads, head_dim]`; `places` as `places` below gives them."""
        self._key_rows.index_copy_(0, places, key.reshape(places.shape[0], -1))
        self._value_rows.index_copy_(0, places, value.reshape(places.shape[0], -1))

    def reserve(self, blocks: int) -> None:
        """Have a store of so many blocks. What was in it is lost."""
        shapes = (self.keys[0, :, :1].transpose(0, 1), self.values[0, :, :1].transpose(0, 1))
        stores = [_mapped(blocks, BLOCK_TOKENS, like)[0] for like in shapes]
        self._kept = ((self.keys, stores[0]), (self.values, stores[1]))

    def save(self, slot: int, pairs: Sequence[Pair]) -> None:
        """Copy blocks of a slot's sequence to the store."""
        for slots, store in self._kept:
            for stored, own in _spans(store, slots[slot], pairs):
                stored.copy_(own)

    def load(self, slot: int, pairs: Sequence[Pair]) -> None:
        """Copy blocks of the store to a slot."""
        for slots, store in self._kept:
            for stored, own in _spans(store, slots[slot], pairs):
                own.copy_(stored)

    def give_back(self, slot: int) -> None:
        """Return the memory of a free slot to the system."""
        for tensor, memory in ((self.keys, self._key_map), (self.values, self._value_map)):
            size = tensor.stride(0) * tensor.element_size()
            start = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0 and _NORESERVE:
                memory.madvise(mmap.MADV_DONTNEED, start, length)


class SlotCache:
    """All layers. Mutable: `layers` (made when a layer first sees a key), `_touched` (tokens of memory a slot has),
    `_live` (the slots that hold a sequence), `_unclean` (those to be zeroed before they are written again), `_capacity`
    (how many tokens of memory all slots may have together).
    """

    def __init__(self, slots: int, context: int) -> None:
        self.slots = slots
        self.context = context
        self.layers: dict[int, LayerCache] = {}
        self._touched = [0] * slots
        self._live: set[int] = set()
        self._unclean: set[int] = set()
        self._capacity = slots * context

    @property
    def bytes_per_token(self) -> int:
        """Over all layers seen so far."""
        return sum(layer.bytes_per_token for layer in self.layers.values())

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> LayerCache:
        """The cache of layer `index`; `key` and `value` as in `LayerCache`."""
        found = self.layers.get(index)
        if found is None:
            found = self.layers[index] = LayerCache(self.slots, self.context, key, value)
        return found

    def reserve(self, blocks: int) -> None:
        """Have a store of so many blocks; all layers have been seen."""
        for layer in self.layers.values():
            layer.reserve(blocks)

    def save(self, slot: int, pairs: Sequence[Pair]) -> None:
        """Copy what a slot holds to the store's blocks."""
        for layer in self.layers.values():
            layer.save(slot, pairs)

    def load(self, slot: int, pairs: Sequence[Pair]) -> None:
        """Copy blocks of the store to where the sequence in a slot has them."""
        self._clean()
        self._hold(slot, max(pair.place + 1 for pair in pairs) * BLOCK_TOKENS)
        for layer in self.layers.values():
            layer.load(slot, pairs)

    def release(self, slot: int, *, clear: bool) -> None:
        """A slot's sequence has left: its memory may be given back. `clear`: and must be zeroed.

        What it holds is there until something is written: it may still be saved.
        """
        self._live.discard(slot)
        if clear:
            self._unclean.add(slot)

    def keep(self, tokens: int) -> None:
        """Have room for so many tokens of all sequences together."""
        self._capacity = tokens

    def touch(self, ends: dict[int, int]) -> None:
        """Note that slots are about to hold tokens up to `ends`; free slots give back what is over the capacity."""
        self._clean()
        for slot, end in ends.items():
            self._hold(slot, end)
        over = sum(self._touched) - self._capacity
        if over > 0:
            self._trim(over)

    def _clean(self) -> None:
        for slot in self._unclean:
            for layer in self.layers.values():
                layer.keys[slot, :, : self._touched[slot]].zero_()
                layer.values[slot, :, : self._touched[slot]].zero_()
        self._unclean.clear()

    def _hold(self, slot: int, end: int) -> None:
        self._touched[slot] = max(self._touched[slot], end)
        self._live.add(slot)

    def _trim(self, over: int) -> None:
        for slot in sorted(range(self.slots), key=self._touched.__getitem__, reverse=True):
            if over <= 0 or not self._touched[slot]:
                return
            # A sequence that has no part in this step keeps what it has.
            if slot not in self._live:
                for layer in self.layers.values():
                    layer.give_back(slot)
                over -= self._touched[slot]
                self._touched[slot] = 0


def places(slots: torch.Tensor, positions: torch.Tensor, kv_heads: int, context: int) -> torch.Tensor:
    """Where tokens go: int64 `[tokens × kv_heads]`, a token's heads side by side; the others are int64 `[tokens]`."""
    heads = torch.arange(kv_heads)
    return ((slots[:, None] * kv_heads + heads) * context + positions[:, None]).flatten()


def _spans(
    store: torch.Tensor, slot: torch.Tensor, pairs: Sequence[Pair]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The places of `pairs` in the store and in a slot `[kv_heads, context, head_dim]`, as views of one shape.

    Where blocks lie side by side at both ends, many are one view `[blocks, kv_heads, BLOCK_TOKENS, head_dim]`.
    """
    first = 0
    for last, pair in enumerate(pairs, start=1):
        if last < len(pairs) and pairs[last] == (pair.place + 1, pair.block + 1):
            continue
        place, block = pairs[first]
        count = last - first
        own = slot[:, place * BLOCK_TOKENS : (place + count) * BLOCK_TOKENS]
        yield store[block : block + count], own.view(own.shape[0], count, BLOCK_TOKENS, -1).transpose(0, 1)
        first = last


def _mapped(slots: int, context: int, like: torch.Tensor) -> tuple[torch.Tensor, mmap.mmap]:
    heads, head_dim = like.shape[1:]
    count = slots * context * heads * head_dim
    memory = mmap.mmap(-1, count * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # With huge pages a head's first token would cost 2 MiB.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype, count=count).view(slots, heads, context, head_dim), memory
