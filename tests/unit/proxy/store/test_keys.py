import datetime as dt
from typing import Any

import pytest

from proxy.store.accounts import Account
from proxy.store.database import StorageRejectedError
from proxy.store.keys import KeyExistsError, UnknownKeyError


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


async def test_a_use_is_noted_and_makes_no_new_generation(store: Any, make: Any) -> None:
    await store.keys.touch("key_a", make.now)
    used = await store.keys.lookup("key_a")
    assert (used.last_used, used.generation) == (make.now, 1)
    assert (await store.keys.lookup("key_b")).last_used is None


async def test_a_moment_without_a_time_zone_is_rejected(store: Any, make: Any) -> None:
    with pytest.raises(StorageRejectedError, match="time zone"):
        await store.keys.create(make.key("key_c", created=make.now.replace(tzinfo=None)))
