import asyncio
from typing import Any

from proxy.store.accounts import Account, AccountExistsError


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
