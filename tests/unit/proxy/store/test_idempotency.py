"""Idempotency keys in the database: one request has each, for as long as the ledger says that something came of it."""

import asyncio
import datetime as dt
from typing import Any

import pytest

from proxy.store.claims import ClaimTakenError, IdempotencyKey, Nonce
from proxy.store.database import StorageError
from proxy.store.idempotency import Earlier
from proxy.store.standing import Monthly, QuotaExceededError

NOW = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
PRINT = b"f" * 32


def key(name: str = "k", *, made: dt.datetime = NOW) -> IdempotencyKey:
    return IdempotencyKey(name, PRINT, made, made + DAY)


async def test_a_key_is_claimed_with_the_reservation_and_runs_until_that_ends(store: Any, make: Any) -> None:
    assert await store.idempotency.find(key()) is None
    await store.ledger.reserve(make.entry("req_1", stream=False), (key(),))
    assert await store.idempotency.find(key()) == Earlier(PRINT, running=True, stream=False, answer=None)
    with pytest.raises(ClaimTakenError):
        await store.ledger.reserve(make.entry("req_2"), (key(),))
    await store.ledger.settle(make.settled("req_1"))
    assert await store.idempotency.find(key()) == Earlier(PRINT, running=False, stream=False, answer=None)
    with pytest.raises(ClaimTakenError):
        await store.ledger.reserve(make.entry("req_2"), (key(),))
    assert (await store.ledger.standing("key_a", make.period)).settled_requests == 1


async def test_of_many_at_once_one_has_the_key(store: Any, make: Any) -> None:
    tried = [store.ledger.reserve(make.entry(f"req_{n}"), (key(),)) for n in range(10)]
    done = await asyncio.gather(*tried, return_exceptions=True)
    assert [type(one) for one in done if one is not None] == [ClaimTakenError] * 9


async def test_a_request_that_is_refused_by_its_quota_claims_nothing(store: Any, make: Any) -> None:
    limits = Monthly(monthly_tokens=50, monthly_requests=None)
    nonce = Nonce("key_a", "n" * 16, NOW, NOW + DAY, signed=True)
    with pytest.raises(QuotaExceededError):
        await store.ledger.reserve(make.entry("req_1", 51), (key(), nonce), limits)
    assert await store.idempotency.find(key()) is None
    assert not await store.nonces.seen(nonce)
    await store.ledger.reserve(make.entry("req_2", 50), (key(), nonce), limits)
    # Nor does one whose nonce is free and whose key is not.
    other = Nonce("key_a", "m" * 16, NOW, NOW + DAY, signed=True)
    with pytest.raises(ClaimTakenError):
        await store.ledger.reserve(make.entry("req_3", 0), (other, key()), limits)
    assert not await store.nonces.seen(other)
    await store.nonces.spend(other, "req_4")


@pytest.mark.parametrize("end", ["void", "broken off"])
async def test_a_key_is_free_again_when_no_whole_answer_came_of_it(store: Any, make: Any, end: str) -> None:
    await store.ledger.reserve(make.entry("req_1"), (key(),))
    if end == "void":
        await store.ledger.void(make.voided("req_1"))
    else:
        await store.ledger.settle(make.settled("req_1", reason="client_gone", status=499))
    assert await store.idempotency.find(key()) is None
    await store.ledger.reserve(make.entry("req_2"), (key(),))
    found = await store.idempotency.find(key())
    assert found.running
    # What ends late is not the one that has the key.
    await store.idempotency.keep(key(), "req_1", b"old")
    await store.ledger.settle(make.settled("req_2"))
    assert (await store.idempotency.find(key())).answer is None


async def test_an_answer_is_kept_and_deleted_when_its_day_is_over(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_1"), (key(),))
    await store.ledger.settle(make.settled("req_1"))
    await store.idempotency.keep(key(), "req_1", b'{"a":1}')
    assert (await store.idempotency.find(key())).answer == b'{"a":1}'
    assert await store.idempotency.purge(NOW + DAY - dt.timedelta(seconds=1)) == 0
    assert await store.idempotency.find(key(made=NOW + DAY)) is None
    assert await store.idempotency.purge(NOW + DAY) == 1
    assert await store.idempotency.find(key()) is None


async def test_an_expired_key_may_be_used_again_before_it_is_deleted(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_1"), (key(),))
    await store.ledger.settle(make.settled("req_1"))
    await store.ledger.reserve(make.entry("req_2"), (key(made=NOW + DAY),))
    assert (await store.idempotency.find(key(made=NOW + DAY))).running


async def test_f1_what_a_dead_proxy_left_is_free_once_it_is_known_that_it_never_ran(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_1"), (key(),))
    # The next boot finds the reservation open, and its sidecar knows nothing of it.
    await store.ledger.void(make.voided("req_1"))
    await store.ledger.reserve(make.entry("req_2"), (key(),))


async def test_a_key_whose_ledger_row_is_gone_is_done(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_1"), (key(),))

    async def drop(connection: Any, _records: Any) -> None:
        await connection.exec_driver_sql("DELETE FROM ledger")

    await store.writer.submit(drop, None)
    assert await store.idempotency.find(key()) == Earlier(PRINT, running=False, stream=False, answer=None)


async def test_a_database_that_is_gone_says_so(store: Any) -> None:
    await store.writer.__aexit__(None, None, None)
    with pytest.raises(StorageError):
        await store.idempotency.find(key())
