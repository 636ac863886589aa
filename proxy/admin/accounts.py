"""What an operator does with accounts."""

import secrets
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from proxy.admin.desk import Desk, Order, explained, part
from proxy.admin.records import (
    Account,
    AccountChanges,
    AccountLimitChanges,
    AccountLimits,
    KeyLimitChanges,
    Listing,
    NewAccount,
    Nothing,
    Paging,
)
from proxy.policy.schema import Overrides
from proxy.store import accounts as store
from proxy.store.patches import Patch
from sidecar.wire.errors import ApiError

DISABLE: Final = "account.disable"
ENABLE: Final = "account.enable"
UPDATE: Final = "account.update"


async def create_account(desk: Desk, order: Order[NewAccount]) -> Account:
    """Raises ApiError 409 if the name is taken."""
    wanted = order.given
    limits = Overrides(monthly_requests=wanted.limits.monthly_requests, monthly_tokens=wanted.limits.monthly_tokens)
    made = store.Account(
        id=f"acct_{secrets.token_hex(8)}",
        name=wanted.name,
        created=desk.clock.now(),
        limits=limits,
        metadata=wanted.metadata,
    )
    with explained():
        await desk.accounts.create(made, order.by)
    return _shown(made)


async def list_accounts(desk: Desk, order: Order[Paging]) -> Listing[Account]:
    """By name."""
    with explained():
        found = await desk.accounts.list(order.given.after, order.given.limit + 1)
    shown, last = part(found, order.given.limit)
    return Listing([_shown(account) for account in shown], None if last is None else last.name)


async def show_account(desk: Desk, order: Order[Nothing]) -> Account:
    """Raises ApiError 404."""
    return _shown(await named(desk, order.id))


async def update_account(desk: Desk, order: Order[AccountChanges]) -> Account:
    """Raises ApiError 404, and 409 if the name is taken."""
    wanted = order.given
    put = {} if wanted.name is UNSET else {"name": wanted.name}
    return await _patched(
        desk, order, Patch(put, {"limits": given(wanted.limits), "metadata": wanted.metadata}), UPDATE
    )


async def disable_account(desk: Desk, order: Order[Nothing]) -> Account:
    """Its keys are good for nothing from now on, and what runs on them is cut. Raises ApiError 404."""
    found = await named(desk, order.id)
    if found.disabled is not None:
        return _shown(found)
    return await _patched(desk, order, Patch({"disabled": desk.clock.now()}), DISABLE)


async def enable_account(desk: Desk, order: Order[Nothing]) -> Account:
    """Raises ApiError 404."""
    return await _patched(desk, order, Patch({"disabled": None}), ENABLE)


async def named(desk: Desk, name_or_id: str) -> store.Account:
    """Raises ApiError 404."""
    with explained():
        found = await desk.accounts.named(name_or_id)
    if found is None:
        raise ApiError(404, f"There is no account '{name_or_id}'.", code="account_not_found", param="account")
    return found


def given(limits: AccountLimitChanges | KeyLimitChanges) -> Mapping[str, object]:
    """Those that are to be changed."""
    values = {name: getattr(limits, name) for name in limits.__struct_fields__}
    return {name: value for name, value in values.items() if value is not UNSET}


async def _patched(desk: Desk, order: Order[AccountChanges] | Order[Nothing], patch: Patch, action: str) -> Account:
    found = await named(desk, order.id)
    with explained():
        await desk.accounts.patch(found.id, patch, action, desk.clock.now(), order.by)
        await desk.changed()
    return _shown(await named(desk, found.id))


def _shown(found: store.Account) -> Account:
    limits = msgspec.convert(msgspec.to_builtins(found.limits), AccountLimits)
    return Account(found.id, found.name, found.created, found.disabled is not None, limits, dict(found.metadata))
