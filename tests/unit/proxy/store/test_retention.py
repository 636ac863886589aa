"""Old requests go, a few at a time; what runs, and what each key used, stays."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import select

from proxy.store import retention
from proxy.store.ledger import Standing
from proxy.store.retention import Retention, first_kept
from proxy.store.tables import ledger

# As the other tests' now: 25 November 2026.
OLD = {"period": "2026-08", "created": dt.datetime(2026, 8, 31, 23, 59, 59, tzinfo=dt.UTC)}
KEPT = {"period": "2026-09", "created": dt.datetime(2026, 9, 1, tzinfo=dt.UTC)}


async def rows(store: Any) -> list[str]:
    return [row.request_id for row in await store.writer.read(select(ledger.c.request_id).order_by("request_id"))]


async def settled(store: Any, make: Any, name: str, **changes: Any) -> None:
    await store.ledger.reserve(make.entry(name, 100, **changes))
    await store.ledger.settle(make.settled(name, 10, 5))


async def test_old_months_are_deleted_and_their_totals_stay(store: Any, make: Any) -> None:
    for name in ("old_1", "old_2"):
        await settled(store, make, name, **OLD)
    await store.ledger.reserve(make.entry("old_void", **OLD))
    await store.ledger.void(make.voided("old_void"))
    await store.ledger.reserve(make.entry("old_open", 100, **OLD))
    await settled(store, make, "kept", **KEPT)
    await settled(store, make, "new")
    keeping = Retention(store.writer, 2)
    assert await keeping.delete_some(make.now) == 3
    assert await keeping.delete_some(make.now) == 0
    assert await rows(store) == ["kept", "new", "old_open"]
    assert await store.ledger.standing("key_a", "2026-08") == Standing(30, 100, 2, 1)
    assert await store.ledger.check() == []
    # And the open one ends as any other.
    await store.ledger.settle(make.settled("old_open", 10, 5))
    assert await store.ledger.standing("key_a", "2026-08") == Standing(45, 0, 3, 0)
    assert await keeping.delete_some(make.now) == 1
    assert await store.ledger.check() == []


async def test_what_is_kept_is_still_compared_with_its_totals(store: Any, make: Any) -> None:
    await settled(store, make, "old", **OLD)
    await settled(store, make, "kept", **KEPT)
    await Retention(store.writer, 2).delete_some(make.now)
    async with store.database.write() as connection:
        await connection.execute(ledger.delete())
    (problem,) = await store.ledger.check()
    assert "key_a in 2026-09" in problem


async def test_a_commit_deletes_a_few(store: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    for number in range(5):
        await settled(store, make, f"old_{number}", **OLD)
    keeping = Retention(store.writer, 2)
    assert [await keeping.delete_some(make.now) for _ in range(4)] == [2, 2, 1, 0]
    assert await rows(store) == []


@pytest.mark.parametrize(
    ("now", "months", "first"),
    [
        ((2026, 11, 25), 1, "2026-10"),
        ((2026, 11, 30), 10, "2026-01"),
        ((2026, 11, 1), 11, "2025-12"),
        ((2027, 1, 1), 1, "2026-12"),
        ((2026, 12, 31), 12, "2025-12"),
        ((2026, 11, 25), 1200, "1926-11"),
    ],
)
def test_the_first_month_that_is_kept(now: tuple[int, int, int], months: int, first: str) -> None:
    assert first_kept(dt.datetime(*now, tzinfo=dt.UTC), months) == first
