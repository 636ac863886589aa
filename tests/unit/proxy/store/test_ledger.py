import asyncio
import datetime as dt
from typing import Any

import pytest
from sqlalchemy import select

from proxy.policy.schema import Overrides
from proxy.store.accounts import Account
from proxy.store.database import StorageRejectedError
from proxy.store.ledger import OUTSIDE, Ledger, Standing
from proxy.store.patches import Patch
from proxy.store.spread import Spread
from proxy.store.tables import ledger as table


async def row(store: Any, request_id: str) -> dict[str, Any]:
    (found,) = await store.writer.read(select(table).where(table.c.request_id == request_id))
    return dict(found._mapping)


async def test_an_account_stands_where_all_its_keys_do(store: Any, make: Any) -> None:
    assert await store.ledger.account_standing("acc", make.period) == Standing()
    await store.ledger.reserve(make.entry("r1", 100))
    await store.ledger.reserve(make.entry("r2", 50, "key_b"))
    await store.ledger.reserve(make.entry("r3", 7, "key_b", period="2026-10"))
    await store.ledger.settle(make.settled("r2", 10, 5))
    assert await store.ledger.account_standing("acc", make.period) == Standing(15, 100, 1, 1)
    assert await store.ledger.account_standing("other", make.period) == Standing()


async def test_a_request_from_reservation_to_settlement(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_a", 100))
    assert await store.ledger.standing("key_a", make.period) == Standing(0, 100, 0, 1)
    await store.ledger.shrink("req_a", 40)
    assert await store.ledger.standing("key_a", make.period) == Standing(0, 40, 0, 1)
    await store.ledger.settle(make.settled("req_a", 10, 5, finish_reason="stop"))
    assert await store.ledger.standing("key_a", make.period) == Standing(15, 0, 1, 0)
    assert await store.ledger.check() == []
    found = await row(store, "req_a")
    assert (found["state"], found["reason"], found["finish_reason"]) == ("settled", "complete", "stop")
    assert (found["est_tokens"], found["prompt_tokens"], found["completion_tokens"]) == (40, 10, 5)
    assert (found["boot_id"], found["upstream"], found["status"]) == ("boot_1", "local", 200)
    assert (found["duration_ms"], found["ttft_ms"]) == (7, 3)


async def test_a_reserved_row_tells_what_was_asked(store: Any, make: Any) -> None:
    entry = make.entry("req_a", 100, client_request_id="mine", trace_id="f" * 32, stream=False, choices=3, priority=9)
    await store.ledger.reserve(entry)
    found = await row(store, "req_a")
    assert (found["client_request_id"], found["trace_id"]) == ("mine", "f" * 32)
    assert (found["stream"], found["choices"], found["priority"]) == (0, 3, 9)
    assert (found["state"], found["ended"], found["prompt_tokens"], found["status"]) == ("reserved", None, 0, None)


async def test_a_void_request_costs_nothing(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_a"))
    await store.ledger.void(make.voided("req_a"))
    assert await store.ledger.standing("key_a", make.period) == Standing()
    found = await row(store, "req_a")
    assert (found["state"], found["status"], found["error_code"], found["ttft_ms"]) == ("void", 503, "busy", None)


async def test_a_forced_request_is_charged(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_a", 100))
    await store.ledger.settle(make.settled("req_a", 60, 40, reason="client_gone", forced=True))
    assert await store.ledger.standing("key_a", make.period) == Standing(100, 0, 1, 0)
    assert (await row(store, "req_a"))["state"] == "forced"


async def test_a_key_that_never_asked_stands_at_zero(store: Any, make: Any) -> None:
    assert await store.ledger.standing("key_a", make.period) == Standing()


async def test_what_comes_twice_counts_once(store: Any, make: Any) -> None:
    for _ in range(2):
        await store.ledger.reserve(make.entry("req_a", 100))
    for _ in range(2):
        await store.ledger.settle(make.settled("req_a", 10, 5))
    await store.ledger.void(make.voided("req_a"))
    assert await store.ledger.standing("key_a", make.period) == Standing(15, 0, 1, 0)
    assert await store.ledger.check() == []


async def test_a_whole_life_in_one_batch(store: Any, make: Any) -> None:
    ledger = store.ledger
    lives = [
        (
            ledger.reserve(make.entry(f"req_{n}", 100)),
            ledger.shrink(f"req_{n}", 50),
            ledger.settle(make.settled(f"req_{n}")),
        )
        for n in range(20)
    ]
    await asyncio.gather(*(future for life in lives for future in life))
    assert await ledger.standing("key_a", make.period) == Standing(300, 0, 20, 0)
    assert await ledger.check() == []


async def test_f10_the_period_is_the_reservations(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_a", period="2026-10"))
    ended = dt.datetime(2026, 11, 1, 0, 0, 1, tzinfo=dt.UTC)
    await store.ledger.settle(make.settled("req_a", ended=ended))
    assert await store.ledger.standing("key_a", "2026-10") == Standing(15, 0, 1, 0)
    assert await store.ledger.standing("key_a", "2026-11") == Standing()


async def test_a_reservation_of_an_unknown_key_is_rejected_and_takes_no_other_along(store: Any, make: Any) -> None:
    bad, good = store.ledger.reserve(make.entry("req_a", key_id="nobody")), store.ledger.reserve(make.entry("req_b"))
    await good
    with pytest.raises(StorageRejectedError):
        await bad
    assert await store.ledger.check() == []
    assert await store.ledger.standing("nobody", make.period) == Standing()


async def test_the_open_rows_of_other_boots_are_orphans(store: Any, make: Any) -> None:
    later = make.now + dt.timedelta(seconds=1)
    orphans = [make.entry("req_b"), make.entry("req_a", created=later, upstream=None, trace_id="f" * 32)]
    await asyncio.gather(*(Ledger(store.writer, "boot_0").reserve(entry) for entry in reversed(orphans)))
    await Ledger(store.writer, "boot_0").reserve(make.entry("req_c"))
    await store.ledger.void(make.voided("req_c"))
    await store.ledger.reserve(make.entry("req_mine"))
    assert await store.ledger.open_rows() == orphans


async def test_an_orphan_is_settled_by_the_next_boot(store: Any, make: Any) -> None:
    await Ledger(store.writer, "boot_0").reserve(make.entry("req_a", 100))
    await store.ledger.settle(make.settled("req_a", 10, 5, reason="client_gone"))
    assert await store.ledger.open_rows() == []
    assert (await row(store, "req_a"))["boot_id"] == "boot_0"
    assert await store.ledger.standing("key_a", make.period) == Standing(15, 0, 1, 0)


async def test_usage_is_told_for_every_key(store: Any, make: Any) -> None:
    await store.ledger.reserve(make.entry("req_a", 100))
    await store.ledger.settle(make.settled("req_a", 10, 5, cached_tokens=4))
    await store.ledger.reserve(make.entry("req_b", 30))
    await store.ledger.reserve(make.entry("req_old", 9, key_id="key_b", period="2026-10"))
    used, unused = await store.ledger.usage(make.period)
    assert (used.key_id, used.name, used.account, used.tier) == ("key_a", "key_a", "the account", "free")
    assert (used.requests, used.prompt_tokens, used.cached_tokens, used.completion_tokens) == (1, 10, 4, 5)
    assert (used.total_tokens, used.reserved_tokens, used.reserved_requests) == (15, 30, 1)
    assert (unused.key_id, unused.total_tokens, unused.reserved_tokens, unused.requests) == ("key_b", 0, 0, 0)


async def test_what_was_asked_is_kept_in_numbers(store: Any, make: Any) -> None:
    asked = {"asked_output_tokens": 64, "bound_prompt_tokens": 17, "max_context": 8192, "prompts": 2}
    await store.ledger.reserve(make.entry("req_a", **asked))
    other = Ledger(store.writer, "boot_other")
    (entry,) = await other.open_rows()
    assert entry == make.entry("req_a", **asked)


async def test_how_all_usable_keys_stand_is_told_in_few_rows(store: Any, make: Any) -> None:
    for number in range(20):
        limits = Overrides(monthly_tokens=1000) if number % 2 else Overrides()
        await store.keys.create(make.key(f"key_{number:02}", limits=limits))
    await store.ledger.reserve(make.entry("req_1", est_tokens=100, key_id="key_a"))
    found = {(row.limits, row.requests, row.tokens): row for row in await store.ledger.spread(make.period, make.now)}
    assert {alike: row.keys for alike, row in found.items()} == {
        (Overrides(), 1, 100): 1,
        (Overrides(), 0, 0): 11,
        (Overrides(monthly_tokens=1000), 0, 0): 10,
    }
    assert found[Overrides(monthly_tokens=1000), 0, 0].first == "key_01"
    assert sum(row.keys for row in await store.ledger.spread("2020-01", make.now)) == 22


async def test_what_all_keys_of_an_account_used_stands_with_each(store: Any, make: Any) -> None:
    of_account = Overrides(monthly_requests=10)
    await store.accounts.create(Account("other", "another", make.now, limits=of_account))
    await store.keys.create(make.key("key_c", account_id="other"))
    for number, key_id in enumerate(("key_a", "key_a", "key_b")):
        await store.ledger.reserve(make.entry(f"req_{number}", est_tokens=100, key_id=key_id))
    await store.ledger.settle(make.settled("req_0", 10, 5))
    await store.ledger.reserve(make.entry("req_old", est_tokens=9, key_id="key_c", period="2026-10"))
    await store.keys.revoke("key_b", make.now)
    a, c = sorted(await store.ledger.spread(make.period, make.now), key=lambda row: row.first)
    assert a == Spread("key_a", 1, "free", Overrides(), Overrides(), 2, 115, 3, 215)
    assert c == Spread("key_c", 1, "free", Overrides(), of_account, 0, 0, 0, 0)


async def test_a_key_that_is_good_for_nothing_is_near_no_quota(store: Any, make: Any) -> None:
    later = make.now + dt.timedelta(seconds=1)
    await store.accounts.create(Account("off", "another", make.now))
    await store.keys.create(make.key("key_off", account_id="off"))
    await store.keys.create(make.key("key_old", expires=make.now))
    await store.keys.create(make.key("key_soon", expires=later))
    await store.accounts.patch("off", Patch({"disabled": make.now}), "account.disable", make.now)
    await store.keys.revoke("key_a", make.now)
    assert [row.keys for row in await store.ledger.spread(make.period, make.now)] == [2]
    assert len(await store.ledger.usage(make.period, limit=10)) == 5
    assert [row.keys for row in await store.ledger.spread(make.period, later)] == [1]


async def test_words_of_others_that_do_not_fit_are_cut_and_cost_no_row(store: Any, make: Any) -> None:
    long = "\0" + "x" * 1000
    await store.ledger.reserve(make.entry("req_a", client_request_id=long))
    await store.ledger.settle(make.settled("req_a", finish_reason=long, error_code=long))
    found = await row(store, "req_a")
    assert found["state"] == "settled"
    for name, length in OUTSIDE.items():
        assert getattr(table.c[name].type, "length", None) == length
        assert found[name] in {"x" * length, "small"}
