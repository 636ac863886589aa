"""Slots and tokens are counted; the lowest free slot is given first."""

import pytest

from sidecar.engine.slot_pool import SlotPool


def test_the_lowest_free_slot_is_taken() -> None:
    pool = SlotPool(3, 100)
    assert [pool.take(), pool.take()] == [0, 1]
    pool.release(0, 0)
    assert pool.take() == 0
    assert pool.take() == 2
    assert not pool.has_free_slot
    with pytest.raises(IndexError):
        pool.take()


def test_room_is_what_is_not_held() -> None:
    pool = SlotPool(2, 10)
    slot = pool.take()
    pool.hold(7)
    assert pool.room_tokens == 3
    pool.release(slot, 7)
    assert (pool.room_tokens, pool.used_tokens) == (10, 0)
