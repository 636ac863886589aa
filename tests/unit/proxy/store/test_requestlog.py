"""The request log: what is found, in which order, and that no look takes the whole of it in."""

import datetime as dt
from typing import Any

import pytest

from proxy.store import requestlog
from proxy.store.requestlog import FIELDS, LoggedRequest, Place, RequestLog, Sought
from proxy.store.tables import ledger

MINUTE = dt.timedelta(minutes=1)
ALL = Sought()


@pytest.fixture
def log(store: Any) -> RequestLog:
    return RequestLog(store.writer)


async def ask(store: Any, make: Any, names: str, **changes: Any) -> None:
    """A request a minute, each named by a letter."""
    for name in names:
        created = make.now + MINUTE * (ord(name) - ord("a"))
        await store.ledger.reserve(make.entry(name, **{"created": created, **changes}))


async def every(log: RequestLog, sought: Sought = ALL, limit: int = 2) -> str:
    """All that is found, part by part."""
    found, place = "", None
    while True:
        part, place = await log.page(sought, after=place, limit=limit)
        assert len(part) <= limit
        found += "".join(request.request_id for request in part)
        if place is None:
            return found
        place = Place.parse(str(place))


async def test_the_newest_come_first_part_by_part(store: Any, make: Any, log: RequestLog) -> None:
    await ask(store, make, "caebd")
    for limit in (1, 2, 3, 5, 100):
        assert await every(log, limit=limit) == "edcba"


async def test_a_full_part_that_is_the_last_is_followed_by_none(store: Any, make: Any, log: RequestLog) -> None:
    await ask(store, make, "abc")
    _, place = await log.page(ALL, after=None, limit=3)
    assert place is None
    _, place = await log.page(ALL, after=None, limit=2)
    assert place is not None
    assert (await log.page(ALL, after=place, limit=1))[1] is None


async def test_those_of_one_moment_are_each_found_once(store: Any, make: Any, log: RequestLog) -> None:
    await ask(store, make, "cabd", created=make.now)
    for limit in (1, 3, 4):
        assert await every(log, limit=limit) == "dcba"


async def test_what_came_meanwhile_moves_no_part(store: Any, make: Any, log: RequestLog) -> None:
    await ask(store, make, "abc")
    first, place = await log.page(ALL, after=None, limit=2)
    await ask(store, make, "de")
    second, _ = await log.page(ALL, after=place, limit=2)
    assert [request.request_id for request in (*first, *second)] == ["c", "b", "a"]


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
async def test_a_look_takes_no_more_than_a_slice_in(
    store: Any, make: Any, log: RequestLog, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(requestlog, "SLICE", rows)
    await ask(store, make, "abcdefgh")
    await ask(store, make, "ij", key_id="key_b", created=make.now - MINUTE)
    assert await every(log) == "hgfedcbaji"
    assert await every(log, Sought(key_id="key_b")) == "ji"
    monkeypatch.setattr(requestlog, "SLICES", 2)
    found, place = await log.page(Sought(key_id="key_b"), after=None, limit=2)
    assert (place is None) is (rows == 100)
    assert len(found) == (2 if rows == 100 else 0)
    assert await every(log, Sought(key_id="key_b")) == "ji"


async def test_it_is_searched_by_all_that_a_row_says(store: Any, make: Any, log: RequestLog) -> None:
    await ask(store, make, "a", model="large")
    await ask(store, make, "b", key_id="key_b", account_id="acc_2")
    await ask(store, make, "c")
    await store.ledger.settle(make.settled("c", 10, 5))
    await ask(store, make, "d")
    await store.ledger.void(make.voided("d"))
    for sought, found in (
        (Sought(model="large"), "a"),
        (Sought(key_id="key_b"), "b"),
        (Sought(account_id="acc_2"), "b"),
        (Sought(state="settled"), "c"),
        (Sought(state="reserved"), "ba"),
        (Sought(status=503), "d"),
        (Sought(since=make.now + MINUTE, until=make.now + 3 * MINUTE), "cb"),
        (Sought(since=make.now + MINUTE, key_id="key_a", state="void"), "d"),
        (Sought(key_id="nobody"), ""),
    ):
        assert await every(log, sought) == found


async def test_a_request_is_told_in_full_and_without_content(store: Any, make: Any, log: RequestLog) -> None:
    await ask(store, make, "a", trace_id="f" * 32)
    await store.ledger.settle(make.settled("a", 10, 5, finish_reason="stop"))
    ((found,), _) = await log.page(ALL, after=None, limit=1)
    assert isinstance(found, LoggedRequest)
    assert (found.request_id, found.created, found.ended, found.status) == ("a", make.now, make.now, 200)
    assert (found.prompt_tokens, found.completion_tokens, found.finish_reason) == (10, 5, "stop")
    assert (found.stream, found.trace_id, found.rule) == (True, "f" * 32, None)
    assert set(FIELDS) <= set(ledger.c.keys())


@pytest.mark.parametrize("text", ["", "req_1", "zz-req_1", "-", "1" * 40 + "-a"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        Place.parse(text)
