"""Blocks are nobody's, or of one sequence; what a sequence that left has held may be kept until the next step."""

import pytest
import torch

from sidecar.engine.paged_cache import NOBODYS, TRASH, PagedCache, places
from sidecar.engine.prefix_cache import BLOCK_TOKENS, Pair

SHAPE = torch.zeros(1, 2, 8)


def written(cache: PagedCache, slot: int, tokens: int) -> torch.Tensor:
    """Fill a slot with numbers; gives its keys."""
    layer = cache.layer(0, SHAPE, SHAPE)
    cache.touch({slot: tokens})
    at = torch.tensor(places(cache.table(slot), 0, tokens, cache.block_tokens))
    keys = torch.randn(tokens, 2, 8)
    layer.write(at, keys, -keys)
    return keys


def read(cache: PagedCache, slot: int, tokens: int) -> torch.Tensor:
    layer = cache.layer(0, SHAPE, SHAPE)
    keys, values = (pool[cache.table(slot)].flatten(0, 1)[:tokens] for pool in (layer.keys, layer.values))
    assert torch.equal(keys, -values)
    return keys


def test_the_pool_suffices_while_the_tokens_do() -> None:
    cache = PagedCache(5, 1000, "cpu", 16)
    cache.keep(100)
    # Each just over a block: the worst there is.
    ends = dict.fromkeys(range(5), 17) | {0: 32}
    cache.touch(ends)
    used = [block for slot in range(5) for block in cache.table(slot)]
    assert len(used) == len(set(used)) == 10
    assert not {NOBODYS, TRASH} & set(used)
    for slot in range(5):
        cache.release(slot, clear=False)
    assert cache.free_blocks == cache.blocks - 2


def test_what_a_sequence_held_is_kept_after_it_left_and_before_anything_is_written() -> None:
    cache = PagedCache(2, 1000, "cpu", 16)
    keys = written(cache, 0, 150)
    cache.reserve(4)
    cache.release(0, clear=True)
    cache.save(0, (Pair(0, 2), Pair(1, 0)))
    cache.load(1, (Pair(0, 2), Pair(1, 0)))
    assert torch.equal(read(cache, 1, 2 * BLOCK_TOKENS), keys[: 2 * BLOCK_TOKENS])


@pytest.mark.parametrize("clear", [True, False])
def test_a_spoiled_sequence_leaves_zeros(clear: bool) -> None:
    cache = PagedCache(2, 1000, "cpu", 16)
    written(cache, 0, 40)
    held = list(cache.table(0))
    cache.release(0, clear=False)
    if clear:
        # It is told later that it was.
        cache.release(0, clear=True)
    cache.touch({1: 5})
    assert bool(cache.layer(0, SHAPE, SHAPE).keys[held].any()) is not clear


def test_more_room_is_empty_and_of_the_same_shape() -> None:
    cache = PagedCache(2, 5000, "cpu", 16)
    written(cache, 0, 40)
    before = cache.layers[0]
    cache.keep(4000)
    layer = cache.layers[0]
    assert layer is not before
    assert layer.keys.shape == (2 + 2 + 250, 16, 2, 8)
    assert not layer.keys.any()
    assert cache.table(0) == []
    assert cache.bytes_per_token == 2 * 2 * 8 * 4
