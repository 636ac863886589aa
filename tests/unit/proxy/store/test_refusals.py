"""Refused requests in the ledger: a row that moves nothing, ends nothing, and gives way to what runs."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import select

from proxy.store import refusals
from proxy.store.ledger import Standing
from proxy.store.refusals import Refusals, Refused
from proxy.store.tables import ledger as table


def refused(make: Any, request_id: str = "req_a", **changes: Any) -> Refused:
    ended = make.now + dt.timedelta(milliseconds=3)
    return Refused(make.entry(request_id, 40, **changes), "tokens_per_minute", 429, "rate_limit_exceeded", ended, 3)


async def written(store: Any, make: Any) -> list[Any]:
    """The rows, once what was submitted is on disk: what ends nothing comes after it."""
    await store.ledger.void(make.voided("nobody"))
    return list(await store.writer.read(select(table).order_by(table.c.request_id)))


async def test_a_refused_request_is_a_row_that_moves_nothing(store: Any, make: Any) -> None:
    assert Refusals(store.writer, "boot_1").put(refused(make))
    (row,) = await written(store, make)
    assert (row.state, row.rule, row.reason, row.status) == ("refused", "tokens_per_minute", "refused", 429)
    assert (row.error_code, row.est_tokens, row.duration_ms) == ("rate_limit_exceeded", 40, 3)
    assert (row.key_id, row.tier, row.model, row.created) == ("key_a", "free", "small", make.now)
    assert (row.prompt_tokens, row.completion_tokens, row.boot_id) == (0, 0, "boot_1")
    assert await store.ledger.standing("key_a", make.period) == Standing()
    assert await store.ledger.check() == []
    assert await store.ledger.open_rows() == []


async def test_nothing_ends_or_shrinks_a_refused_row(store: Any, make: Any) -> None:
    Refusals(store.writer, "boot_1").put(refused(make))
    await store.ledger.reserve(make.entry("req_a", 10))
    await store.ledger.shrink("req_a", 5)
    await store.ledger.settle(make.settled("req_a", 3, 2))
    (row,) = await written(store, make)
    assert (row.state, row.est_tokens, row.completion_tokens) == ("refused", 40, 0)
    assert await store.ledger.standing("key_a", make.period) == Standing()


async def test_a_row_that_is_there_already_stays(store: Any, make: Any) -> None:
    """As after a commit that reached the disk though nobody heard of it, and a request that was let in first."""
    await store.ledger.reserve(make.entry("req_b", 10))
    shelf = Refusals(store.writer, "boot_1")
    for request_id in ("req_a", "req_a", "req_b", "req_c"):
        shelf.put(refused(make, request_id))
    assert [(row.request_id, row.state) for row in await written(store, make)] == [
        ("req_a", "refused"),
        ("req_b", "reserved"),
        ("req_c", "refused"),
    ]
    shelf.put(refused(make, "req_a"))
    assert len(await written(store, make)) == 3
    await store.ledger.settle(make.settled("req_b", 3, 2))
    assert await store.ledger.check() == []


async def test_where_the_writer_is_behind_refused_requests_are_left_out(
    store: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MOST_BEHIND", 2)
    shelf = Refusals(store.writer, "boot_1")
    assert [shelf.put(refused(make, f"req_{number}")) for number in range(4)] == [True, True, False, False]
    assert len(await written(store, make)) == 2
