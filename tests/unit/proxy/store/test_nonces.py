"""Nonces in the database: one request has each, whoever came at the same time, and the past does not open again."""

import asyncio
import datetime as dt
from typing import Any

import pytest

from proxy.store import nonces
from proxy.store.claims import ClaimTakenError, Nonce
from proxy.store.database import StorageError

NOW = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(seconds=330)


def nonce(value: str = "n" * 16, *, made: dt.datetime = NOW, signed: bool = True) -> Nonce:
    return Nonce("key_a", value, made, made + (LATER - NOW), signed=signed)


async def test_r_a_nonce_is_written_with_its_reservation_and_used_once(store: Any, make: Any) -> None:
    assert not await store.nonces.seen(nonce())
    await store.ledger.reserve(make.entry("req_1"), (nonce(),))
    assert await store.nonces.seen(nonce())
    with pytest.raises(ClaimTakenError):
        await store.ledger.reserve(make.entry("req_2"), (nonce(),))
    assert (await store.ledger.standing("key_a", make.period)).reserved_requests == 1


async def test_r_of_many_at_once_with_one_nonce_one_is_let_in(store: Any, make: Any) -> None:
    tried = [store.ledger.reserve(make.entry(f"req_{n}"), (nonce(),)) for n in range(20)]
    done = await asyncio.gather(*tried, return_exceptions=True)
    assert [type(one) for one in done if one is not None] == [ClaimTakenError] * 19
    assert (await store.ledger.standing("key_a", make.period)).reserved_requests == 1


async def test_r_keys_have_their_nonces_apart(store: Any, make: Any) -> None:
    await store.nonces.spend(nonce(), "req_1")
    other = Nonce("key_b", "n" * 16, NOW, LATER, signed=True)
    assert not await store.nonces.seen(other)
    await store.nonces.spend(other, "req_2")


async def test_a_commit_that_seemed_to_fail_is_no_second_use(store: Any, make: Any) -> None:
    await store.nonces.spend(nonce(), "req_1")
    await store.nonces.spend(nonce(), "req_1")
    entry = make.entry("req_2")
    await store.ledger.reserve(entry, (nonce("m" * 16),))
    await store.ledger.reserve(entry, (nonce("m" * 16),))


@pytest.mark.parametrize("signed", [True, False])
async def test_r_what_came_to_nothing_gives_back_a_nonce_that_is_not_signed(
    store: Any, make: Any, *, signed: bool
) -> None:
    await store.ledger.reserve(make.entry("req_1"), (nonce(signed=signed),))
    await store.ledger.void(make.voided("req_1"))
    assert await store.nonces.seen(nonce(signed=signed)) is signed
    again = store.ledger.reserve(make.entry("req_2"), (nonce(signed=signed),))
    if signed:
        with pytest.raises(ClaimTakenError):
            await again
    else:
        await again
        assert await store.nonces.seen(nonce(signed=False))


async def test_a_nonce_that_is_not_signed_may_be_used_again_when_it_has_expired(store: Any) -> None:
    await store.nonces.spend(nonce(signed=False), "req_1")
    late = nonce(made=LATER, signed=False)
    assert not await store.nonces.seen(late)
    await store.nonces.spend(late, "req_2")
    assert await store.nonces.seen(nonce(made=LATER, signed=False))


async def test_f9_what_was_forgotten_counts_as_seen(store: Any) -> None:
    """A clock that goes back makes an old signature young again, but its nonce is gone."""
    await store.nonces.spend(nonce(), "req_1")
    await store.nonces.spend(nonce("y" * 16, made=NOW + dt.timedelta(seconds=60)), "req_2")
    await store.nonces.forget(LATER + dt.timedelta(seconds=1))
    assert await store.nonces.count() == 1
    assert await store.nonces.seen(nonce())
    assert await store.nonces.seen(nonce("other_" * 3))
    assert not await store.nonces.seen(nonce("other_" * 3, made=NOW + dt.timedelta(seconds=1)))
    # A nonce that is not signed is a client's own word: it is not old or young.
    assert not await store.nonces.seen(nonce("other_" * 3, signed=False))
    await store.nonces.forget(LATER)
    await store.nonces.forget(LATER + dt.timedelta(days=1))
    assert await store.nonces.count() == 0
    assert await store.nonces.seen(nonce("other_" * 3, made=NOW + dt.timedelta(seconds=1)))


async def test_f9_a_nonce_that_is_not_signed_makes_no_signature_old(store: Any) -> None:
    """Its time is our own clock's, which may have been 40 days ahead when it came."""
    ahead = NOW + dt.timedelta(days=40)
    await store.nonces.spend(nonce(made=ahead, signed=False), "req_1")
    await store.nonces.forget(ahead + dt.timedelta(days=1))
    assert await store.nonces.count() == 0
    assert not await store.nonces.seen(nonce("other_" * 3))


async def test_many_are_forgotten_some_at_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.store.nonces.EXPIRED", nonces.EXPIRED.limit(3))
    for number in range(8):
        made = NOW + dt.timedelta(seconds=number)
        await store.nonces.spend(nonce(f"{number}" * 16, made=made), f"req_{number}")
    await store.nonces.forget(LATER + dt.timedelta(seconds=7))
    assert await store.nonces.count() == 1
    assert await store.nonces.seen(nonce("other_" * 3, made=NOW + dt.timedelta(seconds=6)))
    assert not await store.nonces.seen(nonce("other_" * 3, made=NOW + dt.timedelta(seconds=7)))


async def test_a_database_that_is_gone_says_so(store: Any) -> None:
    await store.writer.__aexit__(None, None, None)
    with pytest.raises(StorageError):
        await store.nonces.seen(nonce())
    with pytest.raises(StorageError):
        await store.nonces.spend(nonce(), "req_1")
