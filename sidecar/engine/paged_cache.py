"""The KV cache on a GPU: one pool of blocks for all sequences, and for each slot a list of those that are its own.

Memory there is taken when it is asked for, so a contiguous place for each sequence, as `kv_cache` has it, would cost
the whole context each time. Source: Kwon et al., "Efficient memory management for large language model serving with
PagedAttention", arXiv 2309.06180. A block is laid out as flash-attention reads it.

Two blocks are no sequence's: tables of fewer blocks are filled up with `NOBODYS`, which is never written; rows that
are none write to `TRASH`, which is never read.
"""

from collections.abc import Sequence
from typing import Final

import torch

from sidecar.engine.prefix_cache import BLOCK_TOKENS, Pair

NOBODYS: Final = 0
TRASH: Final = 1
# Enough to prove a tier before it is known how much memory a token takes.
_PROVING_TOKENS: Final = 1024


class PagedLayer:
    """One layer: keys `[blocks, block_tokens, kv_heads, head_dim]` and values alike, in the model's dtype.

    Mutable: the tensors, made anew by `PagedCache.keep`; `_kept`, each of them with its store, one row a token.
    """

    def __init__(self, blocks: int, block_tokens: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """`key` and `value`, `[tokens, kv_heads, head_dim]`, show the shapes, dtypes and device to come."""
        self.kv_heads = key.shape[1]
        self.keys = key.new_zeros(blocks, block_tokens, *key.shape[1:])
        self.values = value.new_zeros(blocks, block_tokens, *value.shape[1:])
        self._kept: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    @property
    def bytes_per_token(self) -> int:
        return sum(pool[0, 0].nbytes for pool in (self.keys, self.values))

    def write(self, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store `[tokens, kv_heads, head_dim]` at `places`, int64 `[tokens]`: block × block_tokens + offset."""
        self.keys.flatten(0, 1).index_copy_(0, places, key)
        self.values.flatten(0, 1).index_copy_(0, places, value)

    def resized(self, blocks: int) -> "PagedLayer":
        """An empty layer of the same shapes with so many blocks."""
        return PagedLayer(blocks, self.keys.shape[1], self.keys[0], self.values[0])

    def reserve(self, tokens: int) -> None:
        """Have a store of so many tokens. What was in it is lost."""
        pools = (self.keys.flatten(0, 1), self.values.flatten(0, 1))
        self._kept = tuple((pool, pool.new_zeros(tokens, *pool.shape[1:])) for pool in pools)

    def save(self, stored: torch.Tensor, own: torch.Tensor) -> None:
        """Copy tokens to the store; both are places, int64 `[tokens]`."""
        for pool, store in self._kept:
            store.index_copy_(0, stored, pool[own])

    def load(self, stored: torch.Tensor, own: torch.Tensor) -> None:
        """Copy tokens of the store; both are places, int64 `[tokens]`."""
        for pool, store in self._kept:
            pool.index_copy_(0, own, store[stored])


class PagedCache:
    """All layers. Mutable: `layers` (made when a layer first sees a key), `blocks` (how many there are), `generation`
    (how often all memory was made anew), `_tables` (the blocks of each slot, in order), `_left` (those of sequences
    that have left since the last step, by slot, and whether to zero them), `_free` (those of nobody, the next one
    last).

    The pool has a block for each slot beyond what its tokens fill, since each sequence fills its last one in part: so
    it never runs out while the sequences hold no more than was asked for.
    """

    def __init__(self, slots: int, context: int, device: str, block_tokens: int = BLOCK_TOKENS) -> None:
        self.slots = slots
        self.context = context
        self.device = torch.device(device)
        self.block_tokens = block_tokens
        self.layers: dict[int, PagedLayer] = {}
        self.generation = 0
        self._begin(_PROVING_TOKENS)

    @property
    def bytes_per_token(self) -> int:
        """Over all layers seen so far."""
        return sum(layer.bytes_per_token for layer in self.layers.values())

    @property
    def free_blocks(self) -> int:
        return len(self._free) + sum(len(table) for table, _ in self._left.values())

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> PagedLayer:
        """The cache of layer `index`; `key` and `value` as in `PagedLayer`."""
        found = self.layers.get(index)
        if found is None:
            found = self.layers[index] = PagedLayer(self.blocks, self.block_tokens, key, value)
        return found

    def keep(self, tokens: int) -> None:
        """Have room for so many tokens of all sequences together. What slots held before is lost."""
        self._begin(tokens)
        self.generation += 1
        for index in list(self.layers):
            # The old one goes first: both might not fit.
            shapes = self.layers.pop(index).resized(1)
            self.layers[index] = shapes.resized(self.blocks)

    def _begin(self, tokens: int) -> None:
        self.blocks = TRASH + 1 + self.slots + -(-tokens // self.block_tokens)
        self._tables: list[list[int]] = [[] for _ in range(self.slots)]
        self._left: dict[int, tuple[list[int], bool]] = {}
        self._free = list(range(self.blocks - 1, TRASH, -1))

    def release(self, slot: int, *, clear: bool) -> None:
        """A slot's sequence has left, and its blocks are free. `clear`: and must be zeroed.

        What it holds is there until something is written: it may still be saved.
        """
        if self._tables[slot]:
            self._left[slot] = self._tables[slot], clear
            self._tables[slot] = []
        elif clear and slot in self._left:
            self._left[slot] = self._left[slot][0], True

    def touch(self, ends: dict[int, int]) -> None:
        """Give slots the blocks for tokens up to `ends`."""
        for table, unclean in self._left.values():
            if unclean:
                self._clean(table)
            self._free += reversed(table)
        self._left.clear()
        for slot, end in ends.items():
            table = self._tables[slot]
            while len(table) * self.block_tokens < end:
                table.append(self._free.pop())

    def reserve(self, blocks: int) -> None:
        """Have a store of so many blocks of `BLOCK_TOKENS`; all layers have been seen."""
        for layer in self.layers.values():
            layer.reserve(blocks * BLOCK_TOKENS)

    def save(self, slot: int, pairs: Sequence[Pair]) -> None:
        """Copy what a slot holds, or held when its sequence left, to the store's blocks."""
        table = self._left[slot][0] if slot in self._left else self._tables[slot]
        stored, own = self._ends(table, pairs)
        for layer in self.layers.values():
            layer.save(stored, own)

    def load(self, slot: int, pairs: Sequence[Pair]) -> None:
        """Copy blocks of the store to where the sequence in a slot has them."""
        self.touch({slot: max(pair.place + 1 for pair in pairs) * BLOCK_TOKENS})
        stored, own = self._ends(self._tables[slot], pairs)
        for layer in self.layers.values():
            layer.load(stored, own)

    def table(self, slot: int) -> list[int]:
        """The blocks of a slot's sequence, in order."""
        return self._tables[slot]

    def _clean(self, table: list[int]) -> None:
        for layer in self.layers.values():
            layer.keys[table] = 0
            layer.values[table] = 0

    def _ends(self, table: list[int], pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """The places of `pairs` in the store and in the pool, int64 `[tokens]`."""
        stored: list[int] = []
        own: list[int] = []
        for pair in pairs:
            stored += range(pair.block * BLOCK_TOKENS, (pair.block + 1) * BLOCK_TOKENS)
            own += places(table, pair.place * BLOCK_TOKENS, (pair.place + 1) * BLOCK_TOKENS, self.block_tokens)
        return torch.tensor(stored, device=self.device), torch.tensor(own, device=self.device)


def places(table: list[int], start: int, end: int, block_tokens: int) -> list[int]:
    """Where the tokens of a sequence are in the pool, by the blocks it has."""
    return [table[at // block_tokens] * block_tokens + at % block_tokens for at in range(start, end)]
