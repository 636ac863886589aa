import datetime as dt
from typing import Any

import pytest

from proxy.policy.schema import Overrides
from proxy.store import keys
from proxy.store.accounts import Account
from proxy.store.database import StorageRejectedError
from proxy.store.keys import KeyExistsError, KeyRevokedError, NewSecret, UnknownKeyError
from proxy.store.patches import Patch


async def test_a_key_comes_back_as_it_went_in(store: Any, make: Any) -> None:
    elsewhere = dt.timezone(dt.timedelta(hours=5, minutes=30))
    full = make.key(
        "key_c",
        models=frozenset({"small", "large"}),
        mac=bytes(range(32)),
        expires=dt.datetime(2027, 1, 1, 5, 30, tzinfo=elsewhere),
        last_used=make.now,
        generation=3,
        revoked=make.now,
        scopes=frozenset({"chat", "models"}),
        limits=Overrides(requests_per_minute=5, monthly_tokens="unlimited"),
        metadata={"team": "web"},
        allow_from=("192.0.2.0/24",),
        deny_from=("192.0.2.7/32",),
        old_mac=b"o" * 32,
        old_mac_version=1,
        old_until=make.now,
    )
    await store.keys.create(full)
    found = await store.keys.lookup("key_c")
    assert found == full
    assert found.expires.utcoffset() == dt.timedelta(0)
    assert await store.keys.lookup("key_a") == make.key("key_a")


async def test_no_models_is_not_all_models(store: Any, make: Any) -> None:
    await store.keys.create(make.key("key_c", models=frozenset()))
    assert (await store.keys.lookup("key_c")).models == frozenset()
    assert (await store.keys.lookup("key_a")).models is None


async def test_an_unknown_key_is_not_found(store: Any) -> None:
    assert await store.keys.lookup("key_z") is None


@pytest.mark.parametrize("key_id", ["key_a", "key_b", "key_z", ""])
async def test_a1_an_unknown_id_costs_the_database_and_us_what_a_known_one_does(
    store: Any, monkeypatch: pytest.MonkeyPatch, key_id: str
) -> None:
    made, record = [], keys._record
    monkeypatch.setattr(keys, "_record", lambda row: made.append(row.id) or record(row))
    found = await store.keys.lookup(key_id)
    assert (found is not None) is (key_id in {"key_a", "key_b"})
    assert made == [key_id if found else "key_a"]


async def test_keys_are_listed_oldest_first_and_by_account(store: Any, make: Any) -> None:
    await store.accounts.create(Account("acc_2", "another", make.now))
    await store.keys.create(make.key("key_0", account_id="acc_2", created=make.now + dt.timedelta(seconds=1)))
    assert [key.key_id for key in await store.keys.list()] == ["key_a", "key_b", "key_0"]
    assert [key.key_id for key in await store.keys.list("acc_2")] == ["key_0"]


async def test_an_id_is_taken_once(store: Any, make: Any) -> None:
    await store.keys.create(make.key("key_a"))
    with pytest.raises(KeyExistsError, match="key_a"):
        await store.keys.create(make.key("key_a", mac=b"n" * 32))
    assert (await store.keys.lookup("key_a")).mac == b"m" * 32


async def test_a_key_of_no_account_is_rejected(store: Any, make: Any) -> None:
    with pytest.raises(StorageRejectedError):
        await store.keys.create(make.key("key_c", account_id="nobody"))


async def test_a_revoked_key_stays_revoked_as_of_the_first_time(store: Any, make: Any) -> None:
    await store.keys.revoke("key_a", make.now)
    revoked = await store.keys.lookup("key_a")
    assert (revoked.revoked, revoked.generation) == (make.now, 2)
    await store.keys.revoke("key_a", make.now + dt.timedelta(days=1))
    assert await store.keys.lookup("key_a") == revoked
    assert (await store.keys.lookup("key_b")).revoked is None


async def test_an_unknown_key_cannot_be_revoked(store: Any, make: Any) -> None:
    with pytest.raises(UnknownKeyError, match="key_z"):
        await store.keys.revoke("key_z", make.now)


async def test_a_key_is_changed_where_the_patch_says_so(store: Any, make: Any) -> None:
    patch = Patch({"tier": "pro", "scopes": ["chat"]}, {"metadata": {"team": "web", "floor": "2"}})
    await store.keys.patch("key_a", patch, make.now)
    changed = await store.keys.lookup("key_a")
    assert (changed.tier, changed.scopes, changed.name) == ("pro", frozenset({"chat"}), "key_a")
    assert changed.metadata == {"team": "web", "floor": "2"}
    assert changed.generation > 1
    await store.keys.patch("key_a", Patch({}, {"metadata": {"team": None}}), make.now)
    assert (await store.keys.lookup("key_a")).metadata == {"floor": "2"}
    assert await store.keys.lookup("key_b") == make.key("key_b")


async def test_a_change_that_changes_nothing_makes_no_new_generation(store: Any, make: Any) -> None:
    await store.keys.patch("key_a", Patch({"tier": "free"}, {"metadata": {"team": None}}), make.now)
    assert await store.keys.lookup("key_a") == make.key("key_a")


async def test_a_rotated_key_has_both_secrets(store: Any, make: Any) -> None:
    until = make.now + dt.timedelta(hours=24)
    await store.keys.rotate("key_a", NewSecret(b"n" * 32, 1, until), make.now)
    rotated = await store.keys.lookup("key_a")
    assert (rotated.mac, rotated.old_mac, rotated.old_mac_version, rotated.old_until) == (
        b"n" * 32,
        b"m" * 32,
        1,
        until,
    )
    assert rotated.generation > 1


async def test_a_revoked_key_is_changed_no_more(store: Any, make: Any) -> None:
    await store.keys.revoke("key_a", make.now)
    with pytest.raises(KeyRevokedError, match="key_a"):
        await store.keys.patch("key_a", Patch({"tier": "pro"}), make.now)
    with pytest.raises(KeyRevokedError, match="key_a"):
        await store.keys.rotate("key_a", NewSecret(b"n" * 32, 1, make.now), make.now)
    with pytest.raises(UnknownKeyError, match="key_z"):
        await store.keys.patch("key_z", Patch({"tier": "pro"}), make.now)


async def test_keys_are_listed_in_pages_by_id(store: Any, make: Any) -> None:
    for name in ("key_d", "key_c"):
        await store.keys.create(make.key(name))
    assert [key.key_id for key in await store.keys.list(limit=3)] == ["key_a", "key_b", "key_c"]
    assert [key.key_id for key in await store.keys.list(after="key_b", limit=3)] == ["key_c", "key_d"]
    assert await store.keys.list("nobody", limit=3) == []


async def test_a_key_comes_with_what_its_account_is(store: Any, make: Any) -> None:
    limits = {"monthly_tokens": 1000}
    await store.accounts.patch("acc", Patch({"disabled": make.now}, {"limits": limits}), "account.disable", make.now)
    found = await store.keys.lookup("key_a")
    assert (found.account_disabled, found.account_limits) == (make.now, Overrides(monthly_tokens=1000))


async def test_a_use_is_noted_and_makes_no_new_generation(store: Any, make: Any) -> None:
    await store.keys.touch("key_a", make.now)
    used = await store.keys.lookup("key_a")
    assert (used.last_used, used.generation) == (make.now, 1)
    assert (await store.keys.lookup("key_b")).last_used is None


async def test_a_moment_without_a_time_zone_is_rejected(store: Any, make: Any) -> None:
    with pytest.raises(StorageRejectedError, match="time zone"):
        await store.keys.create(make.key("key_c", created=make.now.replace(tzinfo=None)))
