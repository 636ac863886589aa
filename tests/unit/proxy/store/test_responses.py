"""Stored responses: whose they are, how long they are there, what leads to them, and how much one account may hold."""

import asyncio
import datetime as dt
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from proxy.store import responses
from proxy.store.accounts import Account
from proxy.store.database import StorageRejectedError
from proxy.store.responses import ConversationTooLongError, Turn
from proxy.store.tables import stored_response as table
from tests.unit.proxy.store.conftest import MOST_BYTES

DAY = dt.timedelta(days=1)
ENOUGH = 10_000


async def ids(store: Any) -> list[str]:
    rows = await store.writer.read(select(table.c.id).order_by(table.c.id))
    return [row.id for row in rows]


async def conversation(store: Any, owned: Any, most_bytes: int = ENOUGH) -> list[str] | None:
    turns = await store.responses.conversation(owned, most_bytes)
    return None if turns is None else [turn.input for turn in turns]


async def keep_line(store: Any, make: Any, names: str) -> None:
    for name, before in zip(names, [None, *names], strict=False):
        await store.responses.keep(make.stored(name, before))


async def test_what_is_kept_is_found_as_it_was(store: Any, make: Any) -> None:
    turn = Turn('[{"content":"Grüße \\u0000"}]', '{"id":"a"}')
    await store.responses.keep(make.stored("a", turn=turn))
    assert await store.responses.find(make.owned("a")) == turn


async def test_another_account_s_is_as_unknown_as_none(store: Any, make: Any) -> None:
    await store.accounts.create(Account("other", "the other", make.now))
    await store.responses.keep(make.stored("a"))
    for owned in (make.owned("a", "other"), make.owned("b")):
        assert await store.responses.find(owned) is None
        assert await store.responses.conversation(owned, ENOUGH) is None
        assert not await store.responses.delete(owned)
    assert await ids(store) == ["a"]


async def test_one_that_has_expired_is_not_there(store: Any, make: Any) -> None:
    await store.responses.keep(make.stored("a"))
    assert await store.responses.find(make.owned("a", now=make.now + DAY - dt.timedelta(seconds=1))) is not None
    late = make.owned("a", now=make.now + DAY)
    assert await store.responses.find(late) is None
    assert await store.responses.conversation(late, ENOUGH) is None
    assert not await store.responses.delete(late)


async def test_a_purge_deletes_what_has_expired_and_nothing_else(
    store: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "PURGED_AT_ONCE", 2)
    for name, days in zip("abcd", (1, 3, 2, 2), strict=True):
        await store.responses.keep(make.stored(name, expires=make.now + days * DAY))
    found = [await store.responses.purge(make.now + 2 * DAY) for _ in range(3)]
    assert found == [2, 1, 0]
    assert await ids(store) == ["b"]


async def test_a_deleted_one_is_gone(store: Any, make: Any) -> None:
    await keep_line(store, make, "ab")
    assert await store.responses.delete(make.owned("a"))
    assert not await store.responses.delete(make.owned("a"))
    assert await ids(store) == ["b"]


async def test_a_conversation_is_what_leads_to_its_last_turn_the_oldest_first(store: Any, make: Any) -> None:
    await keep_line(store, make, "abc")
    await store.responses.keep(make.stored("d", "a"))
    assert await conversation(store, make.owned("c")) == ['["a"]', '["b"]', '["c"]']
    assert await conversation(store, make.owned("d")) == ['["a"]', '["d"]']
    assert await conversation(store, make.owned("a")) == ['["a"]']


async def test_one_that_lost_a_turn_is_none(store: Any, make: Any) -> None:
    await keep_line(store, make, "abc")
    await store.responses.delete(make.owned("a"))
    assert await conversation(store, make.owned("c")) is None


async def test_one_whose_first_turn_expired_is_none(store: Any, make: Any) -> None:
    await store.responses.keep(make.stored("a"))
    await store.responses.keep(make.stored("b", "a", expires=make.now + 2 * DAY))
    assert await conversation(store, make.owned("b", now=make.now + DAY)) is None


async def test_no_turn_of_another_account_leads_anywhere(store: Any, make: Any) -> None:
    await store.accounts.create(Account("other", "the other", make.now))
    await store.responses.keep(make.stored("a", account_id="other"))
    await store.responses.keep(make.stored("b", "a"))
    assert await conversation(store, make.owned("b")) is None


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_the_turns_of_a_conversation_are_bounded(
    store: Any, make: Any, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    monkeypatch.setattr(responses, "MOST_TURNS", 2)
    await keep_line(store, make, "abc"[:turns])
    last = make.owned("abc"[turns - 1])
    if turns <= 2:
        assert len(await conversation(store, last) or []) == turns
    else:
        with pytest.raises(ConversationTooLongError):
            await conversation(store, last)


async def test_the_bytes_of_a_conversation_are_bounded(store: Any, make: Any) -> None:
    await keep_line(store, make, "abc")
    assert await conversation(store, make.owned("c"), most_bytes=15) == ['["a"]', '["b"]', '["c"]']
    for most_bytes in (4, 9, 14):
        with pytest.raises(ConversationTooLongError):
            await conversation(store, make.owned("c"), most_bytes)


async def test_one_that_a_failed_commit_wrote_after_all_is_kept_once(store: Any, make: Any) -> None:
    for _ in range(2):
        await store.responses.keep(make.stored("a"))
    both = [store.responses.keep(make.stored(name)) for name in ("a", "b")]
    await asyncio.gather(*both)
    assert await ids(store) == ["a", "b"]


async def test_one_of_no_account_is_refused(store: Any, make: Any) -> None:
    with pytest.raises(StorageRejectedError):
        await store.responses.keep(make.stored("a", account_id="nobody"))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, MOST_BYTES + 5), max_size=8))
async def test_an_account_keeps_the_newest_that_have_room(store: Any, make: Any, lengths: list[int]) -> None:
    for row in await ids(store):
        await store.responses.delete(make.owned(row))
    await store.accounts.create(Account("other", "the other", make.now))
    await store.responses.keep(make.stored("x", account_id="other", turn=Turn("x" * MOST_BYTES, "")))
    kept: list[int] = []
    for at, length in enumerate(lengths):
        new = make.stored(
            f"r{at}", created=make.now + at * DAY / 100, turn=Turn("ä" * (length // 2), "x" * (length % 2))
        )
        await store.responses.keep(new)
        kept.append(at)
        while sum(lengths[one] for one in kept) > MOST_BYTES:
            kept.pop(0)
    assert await ids(store) == [*(f"r{at}" for at in kept), "x"]
