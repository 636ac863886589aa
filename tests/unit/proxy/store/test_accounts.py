import asyncio
from typing import Any

import pytest

from proxy.policy.schema import Overrides
from proxy.store.accounts import Account, AccountExistsError, UnknownAccountError
from proxy.store.patches import Patch


async def test_an_account_is_found_by_its_name(store: Any, make: Any) -> None:
    new = Account("acc_2", "another", make.now)
    await store.accounts.create(new)
    assert await store.accounts.find("another") == new
    assert await store.accounts.find("acc_2") is None
    assert [account.name for account in await store.accounts.list()] == ["another", "the account"]


async def test_a_name_is_taken_once(store: Any, make: Any) -> None:
    both = [store.accounts.create(Account(f"acc_{n}", "same", make.now)) for n in range(2)]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert first is None
    assert isinstance(second, AccountExistsError)
    assert str(second) == "There is an account 'same' already."
    assert len(await store.accounts.list()) == 2


async def test_an_account_that_a_failed_commit_wrote_after_all_is_no_conflict(store: Any, make: Any) -> None:
    for _ in range(2):
        await store.accounts.create(Account("acc_2", "same", make.now))
    assert len(await store.accounts.list()) == 2


async def test_an_account_is_found_by_its_name_or_its_id_and_rather_by_its_name(store: Any, make: Any) -> None:
    await store.accounts.create(Account("acc_2", "acc", make.now))
    for given, found in (("the account", "acc"), ("acc_2", "acc_2"), ("acc", "acc_2")):
        assert (await store.accounts.named(given)).id == found
    assert await store.accounts.named("nobody") is None


async def test_an_account_comes_back_as_it_went_in(store: Any, make: Any) -> None:
    limits = Overrides(monthly_tokens=1000, monthly_requests="unlimited")
    full = Account("acc_2", "another", make.now, make.now, limits, {"floor": "2"})
    await store.accounts.create(full)
    assert await store.accounts.find("another") == full


async def test_a_change_of_an_account_is_one_of_all_its_keys(store: Any, make: Any) -> None:
    await store.accounts.create(Account("acc_2", "another", make.now))
    await store.keys.create(make.key("key_c", account_id="acc_2"))
    await store.accounts.patch("acc", Patch({"name": "renamed"}), "account.update", make.now)
    assert (await store.accounts.find("renamed")).id == "acc"
    generations = {key.key_id: key.generation for key in await store.keys.list()}
    assert generations["key_a"] == generations["key_b"] > generations["key_c"] == 1


async def test_what_is_wrong_with_a_change_is_told(store: Any, make: Any) -> None:
    await store.accounts.create(Account("acc_2", "another", make.now))
    with pytest.raises(AccountExistsError, match="another"):
        await store.accounts.patch("acc", Patch({"name": "another"}), "account.update", make.now)
    with pytest.raises(UnknownAccountError, match="acc_3"):
        await store.accounts.patch("acc_3", Patch({"name": "x"}), "account.update", make.now)


async def test_accounts_are_listed_in_pages(store: Any, make: Any) -> None:
    for name in ("c", "a", "b"):
        await store.accounts.create(Account(f"acc_{name}", name, make.now))
    assert [account.name for account in await store.accounts.list(limit=2)] == ["a", "b"]
    assert [account.name for account in await store.accounts.list("b", 2)] == ["c", "the account"]
