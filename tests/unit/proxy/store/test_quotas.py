"""A hard quota holds in the database itself: whoever reserves, in however many processes, nobody goes beyond it."""

import asyncio
import contextlib
from typing import Any

import pytest

from proxy.settings import Database as DatabaseSettings
from proxy.store.database import open_database
from proxy.store.ledger import Ledger, Standing
from proxy.store.posting import Entry
from proxy.store.standing import Monthly, QuotaExceededError
from proxy.store.writer import Writer

PROCESSES = 3


async def let_in(*reservations: "asyncio.Future[None]") -> int:
    """How many are; the others fail because of their quota, and of nothing else."""
    outcomes = await asyncio.gather(*reservations, return_exceptions=True)
    errors = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(error, QuotaExceededError) for error in errors), errors
    return len(outcomes) - len(errors)


async def test_a_reservation_that_does_not_fit_is_not_made(store: Any, make: Any) -> None:
    limits = Monthly(monthly_tokens=150, monthly_requests=10)
    await store.ledger.reserve(make.entry("req_a", 100), (), limits)
    with pytest.raises(QuotaExceededError) as refused:
        await store.ledger.reserve(make.entry("req_b", 51), (), limits)
    error = refused.value
    assert (error.rule, error.limit, error.used, error.requested) == ("monthly_tokens", 150, 100, 51)
    await store.ledger.settle(make.settled("req_b"))
    assert await store.ledger.standing("key_a", make.period) == Standing(0, 100, 0, 1)
    await store.ledger.reserve(make.entry("req_b", 50), (), limits)
    assert await store.ledger.standing("key_a", make.period) == Standing(0, 150, 0, 2)
    assert await store.ledger.check() == []


async def test_one_that_is_refused_takes_no_other_of_its_batch_along(store: Any, make: Any) -> None:
    tight = Monthly(monthly_tokens=100)
    futures = [store.ledger.reserve(make.entry(f"req_{number}", 30), (), tight) for number in range(10)]
    other = store.ledger.reserve(make.entry("req_b", 1000, key_id="key_b"))
    assert await let_in(*futures) == 3
    await other
    assert await store.ledger.standing("key_a", make.period) == Standing(0, 90, 0, 3)
    assert await store.ledger.check() == []


async def test_what_is_made_already_is_made_whatever_the_limit_is_by_now(store: Any, make: Any) -> None:
    for limits in (Monthly(monthly_tokens=100), Monthly(monthly_tokens=1)):
        await store.ledger.reserve(make.entry("req_a", 100), (), limits)
    assert await store.ledger.standing("key_a", make.period) == Standing(0, 100, 0, 1)


async def test_an_account_has_its_quota_for_all_of_its_keys(store: Any, make: Any) -> None:
    limits = Monthly(account_monthly_tokens=100)
    await store.ledger.reserve(make.entry("req_a", 60), (), limits)
    await store.ledger.reserve(make.entry("req_old", 500, key_id="key_b", period="2026-10"))
    with pytest.raises(QuotaExceededError, match="account_monthly_tokens: limit 100, used 60, requested 41"):
        await store.ledger.reserve(make.entry("req_b", 41, key_id="key_b"), (), limits)
    await store.ledger.reserve(make.entry("req_b", 40, key_id="key_b"), (), limits)


@pytest.mark.parametrize("of_account", [False, True])
async def test_f5_processes_that_share_a_server_do_not_go_beyond_a_quota_together(
    on_postgres: DatabaseSettings, postgres_store: Any, make: Any, of_account: bool
) -> None:
    """Each reserves as if it were alone, and some are given back meanwhile."""
    limits = Monthly(account_monthly_tokens=1000) if of_account else Monthly(monthly_tokens=1000)

    def entry(process: int, number: int) -> Entry:
        key_id = "key_b" if of_account and number % 2 else "key_a"
        made: Entry = make.entry(f"req_{process}_{number}", 30, key_id)
        return made

    async def work(process: int) -> int:
        async with open_database(on_postgres) as database, Writer(database, postgres_store.writer._clock) as writer:
            ledger = Ledger(writer, f"boot_{process}")
            taken = 0
            for start in range(0, 60, 10):
                entries = [entry(process, number) for number in range(start, start + 10)]
                outcomes = await asyncio.gather(*(let_in(ledger.reserve(made, (), limits)) for made in entries))
                taken += sum(outcomes)
                for made in entries[:2]:
                    with contextlib.suppress(QuotaExceededError):
                        await ledger.settle(make.settled(made.request_id, 10, 5))
                standing = await ledger.account_standing("acc", make.period)
                assert standing.settled_tokens + standing.reserved_tokens <= 1000
            return taken

    await asyncio.gather(*(work(process) for process in range(PROCESSES)))
    standing = await postgres_store.ledger.account_standing("acc", make.period)
    assert 970 < standing.settled_tokens + standing.reserved_tokens <= 1000
    assert await postgres_store.ledger.check() == []


async def test_of_processes_that_race_for_the_last_tokens_one_gets_them(
    on_postgres: DatabaseSettings, postgres_store: Any, make: Any
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ledgers = []
        for process in range(PROCESSES):
            database = await stack.enter_async_context(open_database(on_postgres))
            writer = await stack.enter_async_context(Writer(database, postgres_store.writer._clock))
            ledgers.append(Ledger(writer, f"boot_{process}"))
        for room in range(1, 31):
            limits = Monthly(monthly_tokens=30 * room)
            entries = [make.entry(f"req_{room}_{process}", 30) for process in range(PROCESSES)]
            racing = [ledger.reserve(entry, (), limits) for ledger, entry in zip(ledgers, entries, strict=True)]
            assert await let_in(*racing) == 1
