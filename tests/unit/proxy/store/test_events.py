"""Every change of accounts and keys is in the audit log, once, with what changed and without secrets."""

import datetime as dt
from typing import Any

import pytest

from proxy.store.accounts import Account
from proxy.store.events import Actor, AuditLog, begin
from proxy.store.generation import Generations
from proxy.store.keys import KeyExistsError, NewSecret, _change, _Changed
from proxy.store.patches import Patch, told

ANNE = Actor("socket:1000", "req_1", "local")


@pytest.fixture
def trail(store: Any) -> AuditLog:
    return AuditLog(store.writer)


async def test_each_change_is_an_event(store: Any, make: Any, trail: AuditLog) -> None:
    later = [make.now + dt.timedelta(seconds=number) for number in range(1, 7)]
    await store.accounts.create(Account("acc_2", "another", later[0], metadata={"floor": "2"}), ANNE)
    await store.keys.create(make.key("key_c", account_id="acc_2", created=later[1]), ANNE)
    await store.keys.patch("key_c", Patch({"tier": "pro", "expires": later[5]}), later[2], ANNE)
    await store.keys.rotate("key_c", NewSecret(b"n" * 32, 1, later[5]), later[3], ANNE)
    await store.keys.revoke("key_c", later[4], ANNE)
    await store.accounts.patch("acc_2", Patch({"disabled": later[5]}), "account.disable", later[5], ANNE)
    seen = [event for event in await trail.list(limit=100) if event.actor == "socket:1000"]
    assert {(event.request_id, event.address) for event in seen} == {("req_1", "local")}
    assert [event.time for event in seen] == list(reversed(later))
    ends = "2026-11-25T12:00:06Z"
    assert [(event.action, event.target, event.changes) for event in reversed(seen)] == [
        ("account.create", "acc_2", {"name": [None, "another"], "metadata": [None, {"floor": "2"}]}),
        ("key.create", "key_c", {"account_id": [None, "acc_2"], "name": [None, "key_c"], "tier": [None, "free"]}),
        ("key.update", "key_c", {"tier": ["free", "pro"], "expires": [None, ends]}),
        ("key.rotate", "key_c", {"old_until": [None, ends]}),
        ("key.revoke", "key_c", {"revoked": [None, "2026-11-25T12:00:05Z"]}),
        ("account.disable", "acc_2", {"disabled": [None, ends]}),
    ]


async def test_what_changes_nothing_is_no_event(store: Any, make: Any, trail: AuditLog) -> None:
    await store.keys.revoke("key_a", make.now)
    before = await trail.list(limit=100)
    await store.keys.revoke("key_a", make.now)
    await store.keys.patch("key_b", Patch({"tier": "free"}), make.now)
    await store.keys.create(make.key("key_b"))
    assert await trail.list(limit=100) == before


async def test_a_change_that_fails_is_no_event(store: Any, make: Any, trail: AuditLog) -> None:
    before = await trail.list(limit=100)
    with pytest.raises(KeyExistsError):
        await store.keys.create(make.key("key_a", mac=b"n" * 32))
    assert await trail.list(limit=100) == before


async def test_a_commit_that_only_seemed_to_fail_is_not_done_twice(store: Any, make: Any, trail: AuditLog) -> None:
    change = _Changed("key_a", begin(ANNE, "key.update", "key_a", make.now), Patch({"tier": "pro"}))
    await store.writer.submit(_change, change)
    await store.keys.patch("key_a", Patch({"tier": "free"}), make.now)
    await store.writer.submit(_change, change)
    assert (await store.keys.lookup("key_a")).tier == "free"
    assert len([event for event in await trail.list(limit=100) if event.action == "key.update"]) == 2


async def test_the_log_is_read_in_pages_from_the_newest_on(store: Any, make: Any, trail: AuditLog) -> None:
    for number in range(5):
        await store.keys.patch("key_a", Patch({"name": str(number)}), make.now + dt.timedelta(seconds=number + 1))
    first = await trail.list(limit=2)
    second = await trail.list(limit=2, before=first[-1].id)
    assert [event.changes["name"][1] for event in (*first, *second)] == ["4", "3", "2", "1"]
    assert {event.target for event in await trail.list(limit=100, target="key_b")} == {"key_b"}
    assert await trail.list(limit=100, actor="nobody") == []


def test_a_secret_cannot_be_told() -> None:
    with pytest.raises(TypeError, match="bytes"):
        told(b"m" * 32)


async def test_what_changed_since_a_number_is_found(store: Any, make: Any) -> None:
    generations = Generations(store.writer)
    start = await generations.number()
    assert (await generations.since(start)).key_ids == []
    await store.keys.revoke("key_a", make.now)
    seen = await generations.since(start)
    assert (seen.number > start, seen.key_ids) == (True, ["key_a"])
    assert (await generations.since(seen.number)).key_ids == []
    await store.accounts.patch("acc", Patch({"disabled": make.now}), "account.disable", make.now)
    assert sorted((await generations.since(seen.number)).key_ids) == ["key_a", "key_b"]
    await store.keys.touch("key_b", make.now)
    await store.keys.create(make.key("key_c"))
    assert (await generations.since(seen.number + 1)).key_ids == []
