"""Which blocks of computed tokens are kept, so that what begins alike need not be computed again. Pure bookkeeping.

A block is `BLOCK_TOKENS` tokens. Its key is a hash over the key of the block before it and its own tokens, so that it
stands for all that comes before it too; the first one's is made with the cache scope, so that nothing of one scope is
ever found in another. When every block is taken, the least recently used is written over. A chain of blocks is used
from its end to its beginning: a block is always older than the one before it, and goes before it.
"""

import hashlib
from array import array
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

# Prompts are computed in the same blocks, from the first token on: what is kept of one is what another computes.
BLOCK_TOKENS: Final = 64
# No tenant can make another's prompt look like its own: collisions are out of reach.
_KEY_BYTES: Final = 32


class Pair(NamedTuple):
    """The tokens from `place` × `BLOCK_TOKENS` on of a sequence stand in block number `block`."""

    place: int
    block: int


class _Kept(NamedTuple):
    block: int
    parent: bytes


class PrefixCache:
    """Mutable: `_kept` (by key, the least recently used first), `_free` (the numbers of blocks that hold nothing)."""

    def __init__(self, blocks: int) -> None:
        self._kept: dict[bytes, _Kept] = {}
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def held_tokens(self) -> int:
        return len(self._kept) * BLOCK_TOKENS

    def match(self, scope: str, tokens: Sequence[int]) -> tuple[Pair, ...]:
        """The blocks that `tokens` begin with; one token at least is left out, for its logits are wanted."""
        found: list[bytes] = []
        for key in _keys(scope, tokens, (len(tokens) - 1) // BLOCK_TOKENS):
            if key not in self._kept:
                break
            found.append(key)
        self._use(found)
        return tuple(Pair(place, self._kept[key].block) for place, key in enumerate(found))

    def insert(self, scope: str, tokens: Sequence[int]) -> tuple[Pair, ...]:
        """Keep the whole blocks of `tokens`. Gives those that are new: what they stand for must be copied to them."""
        keys = _keys(scope, tokens, len(tokens) // BLOCK_TOKENS)
        known = [key for key in keys if key in self._kept]
        # Used before anything is written over, so that a chain never loses its own beginning.
        self._use(known)
        new = [place for place, key in enumerate(keys) if key not in self._kept]
        blocks = self._take(len(new), len(self._kept) - len(known))
        # Blocks side by side are copied as one.
        pairs = tuple(map(Pair, new, sorted(blocks)))
        for pair in pairs:
            parent = keys[pair.place - 1] if pair.place else b""
            self._kept[keys[pair.place]] = _Kept(pair.block, parent)
        self._use([key for key in keys if key in self._kept])
        return pairs

    def forget(self, scope: str, tokens: Sequence[int]) -> None:
        """Drop all that begins as `tokens` do: it may be what made a sequence fail."""
        lost = set(_keys(scope, tokens, min(1, len(tokens) // BLOCK_TOKENS)))
        # A block stands behind those that come after it.
        for key in reversed(list(self._kept)):
            if self._kept[key].parent in lost:
                lost.add(key)
        for key in lost & self._kept.keys():
            self._free.append(self._kept.pop(key).block)

    def _use(self, chain: list[bytes]) -> None:
        for key in reversed(chain):
            self._kept[key] = self._kept.pop(key)

    def _take(self, wanted: int, most_lost: int) -> list[int]:
        """Block numbers, `wanted` or as many as there are without writing over more than the `most_lost` oldest."""
        taken = [self._free.pop() for _ in range(min(wanted, len(self._free)))]
        oldest = list(islice(self._kept, min(wanted - len(taken), most_lost)))
        return taken + [self._kept.pop(key).block for key in oldest]


def _keys(scope: str, tokens: Sequence[int], blocks: int) -> list[bytes]:
    """The keys of the first `blocks` blocks."""
    key = hashlib.blake2b(scope.encode(), digest_size=_KEY_BYTES, person=b"scope").digest()
    keys: list[bytes] = []
    for start in range(0, blocks * BLOCK_TOKENS, BLOCK_TOKENS):
        block = array("Q", tokens[start : start + BLOCK_TOKENS]).tobytes()
        key = hashlib.blake2b(key + block, digest_size=_KEY_BYTES, person=b"block").digest()
        keys.append(key)
    return keys
