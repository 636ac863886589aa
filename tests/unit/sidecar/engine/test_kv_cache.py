"""Keys and values stay where they were put; memory is given back when free slots hold too much of it."""

from pathlib import Path

import torch

from sidecar.engine.kv_cache import LayerCache, SlotCache, places
from sidecar.engine.prefix_cache import Pair

SHAPE = torch.zeros(1, 2, 64)


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text("ascii").split()
    return int(fields[1]) * 4096


def test_tokens_land_in_their_places() -> None:
    layer = LayerCache(2, 8, SHAPE, SHAPE)
    key, value = torch.randn(2, 2, 64), torch.randn(2, 2, 64)
    layer.write(places(torch.tensor([0, 1]), torch.tensor([3, 5]), 2, 8), key, value)
    assert torch.equal(layer.keys[0, :, 3], key[0])
    assert torch.equal(layer.keys[1, :, 5], key[1])
    assert torch.equal(layer.values[1, :, 5], value[1])
    assert layer.bytes_per_token == 2 * 2 * 64 * 4


def test_a_large_cache_costs_nothing_until_it_is_written() -> None:
    before = resident_bytes()
    layer = LayerCache(64, 65536, SHAPE, SHAPE)
    assert layer.keys.nbytes == 2 << 30
    assert resident_bytes() - before < 64 << 20


def test_free_slots_give_memory_back_and_live_ones_keep_theirs() -> None:
    cache = SlotCache(3, 65536)
    layer = cache.layer(0, SHAPE, SHAPE)
    assert cache.layer(0, SHAPE, SHAPE) is layer
    layer.keys[:2] = 1.0
    cache.touch({0: 65536, 1: 65536})
    full = resident_bytes()
    cache.release(0, clear=False)
    # Slot 1 has no part in this step, and keeps what it has.
    cache.keep(70000)
    cache.touch({2: 10})
    assert full - resident_bytes() > 20 << 20
    assert layer.keys[1].min() == 1.0
    assert layer.keys[0].max() == 0.0


def test_nothing_is_given_back_below_the_capacity() -> None:
    cache = SlotCache(2, 1024)
    layer = cache.layer(0, SHAPE, SHAPE)
    layer.keys[0] = 1.0
    cache.touch({0: 1024})
    cache.touch({1: 1024})
    assert layer.keys[0].min() == 1.0


def test_blocks_come_back_as_they_were_kept_in_another_slot_and_order() -> None:
    cache = SlotCache(2, 300)
    wide = torch.zeros(1, 2, 32)
    layers = [cache.layer(0, SHAPE, wide), cache.layer(1, SHAPE, wide)]
    for layer in layers:
        layer.keys[0] = torch.randn(2, 300, 64)
        layer.values[0] = torch.randn(2, 300, 32)
    cache.reserve(5)
    # Blocks 0 and 1 lie side by side here and in the store, 3 is apart, and 2 is not kept.
    cache.save(0, (Pair(0, 2), Pair(1, 3), Pair(3, 0)))
    before = [(layer.keys[0].clone(), layer.values[0].clone()) for layer in layers]
    for layer in layers:
        layer.keys[0] = layer.values[0] = 7.0
    cache.load(1, (Pair(0, 2), Pair(1, 3), Pair(2, 0)))
    for layer, (keys, values) in zip(layers, before, strict=True):
        assert torch.equal(layer.keys[1, :, :128], keys[:, :128])
        assert torch.equal(layer.keys[1, :, 128:192], keys[:, 192:256])
        assert torch.equal(layer.values[1, :, :128], values[:, :128])
        assert torch.equal(layer.values[1, :, 128:192], values[:, 192:256])
        assert layer.keys[1, :, 192:].abs().max() == 0


def test_a_slot_that_was_loaded_counts_as_written_and_is_not_given_back() -> None:
    cache = SlotCache(2, 65536)
    layer = cache.layer(0, SHAPE, SHAPE)
    cache.reserve(1024)
    layer.keys[0] = 1.0
    cache.save(0, tuple(Pair(n, n) for n in range(1024)))
    cache.load(1, tuple(Pair(n, n) for n in range(1024)))
    cache.keep(65536)
    cache.touch({0: 65536})
    assert layer.keys[1].min() == 1.0
    cache.release(1, clear=False)
    cache.touch({0: 65536})
    assert layer.keys[1].max() == 0.0
