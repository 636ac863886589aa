"""Accounts: who keys belong to. Rows in, rows out; every change is an event of the audit log."""

import builtins
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.policy.schema import NO_OVERRIDES, Overrides
from proxy.store import events, generation
from proxy.store.events import HOUSE, Act, Actor
from proxy.store.patches import Patch, changes
from proxy.store.tables import account, api_key
from proxy.store.writer import Refusal, Writer, each


class AccountExistsError(Exception):
    """The name is taken."""


class UnknownAccountError(Exception):
    """No account has this id."""


@dataclass(frozen=True, slots=True)
class Account:
    """An owner of keys, known by a name that nobody else has. `limits`: what all of its keys may use together.

    `disabled`: since when its keys are good for nothing.
    """

    id: str
    name: str
    created: dt.datetime
    disabled: dt.datetime | None = None
    limits: Overrides = NO_OVERRIDES
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Created:
    account: Account
    act: Act


@dataclass(frozen=True, slots=True)
class _Patched:
    account_id: str
    patch: Patch
    act: Act


class Accounts:
    """The table of accounts. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def create(self, new: Account, by: Actor = HOUSE) -> None:
        """Returns when it is on disk. Raises AccountExistsError, StorageError."""
        await self._writer.submit(_insert, _Created(new, events.begin(by, "account.create", new.id, new.created)))

    async def find(self, name: str) -> Account | None:
        found = await self._writer.read(select(account).where(account.c.name == name))
        return _account(found[0]) if found else None

    async def named(self, name_or_id: str) -> Account | None:
        """By its name or its id; the one of that name, if there are both."""
        either = or_(account.c.name == name_or_id, account.c.id == name_or_id)
        found = [_account(row) for row in await self._writer.read(select(account).where(either))]
        return min(found, key=lambda record: record.name != name_or_id, default=None)

    async def list(self, after: str | None = None, limit: int | None = None) -> builtins.list[Account]:
        """By name, from behind the name `after` on; all of them if there is no limit."""
        query = select(account).order_by(account.c.name).limit(limit)
        if after is not None:
            query = query.where(account.c.name > after)
        return [_account(row) for row in await self._writer.read(query)]

    async def patch(self, account_id: str, patch: Patch, action: str, now: dt.datetime, by: Actor = HOUSE) -> None:
        """Returns when it is on disk. All keys of the account are of a new generation then.

        Raises UnknownAccountError, AccountExistsError, StorageError.
        """
        await self._writer.submit(_patch, _Patched(account_id, patch, events.begin(by, action, account_id, now)))


async def _insert(connection: AsyncConnection, new: Sequence[_Created]) -> list[Refusal]:
    return await each(connection, new, _insert_one, (AccountExistsError,))


async def _insert_one(connection: AsyncConnection, created: _Created) -> None:
    """A row that is there already, all the same, was written by a commit that seemed to fail."""
    record = created.account
    found = (await connection.execute(select(account).where(account.c.name == record.name))).first()
    if found is None:
        row = _row(record)
        await connection.execute(insert(account), [row])
        given = {name: row[name] for name in ("name", "limits", "metadata") if row[name] is not None}
        await events.log(connection, created.act, {name: (None, value) for name, value in given.items()})
    elif _account(found) != record:
        raise AccountExistsError(f"There is an account {record.name!r} already.")


async def _patch(connection: AsyncConnection, patched: Sequence[_Patched]) -> list[Refusal]:
    return await each(connection, patched, _patch_one, (UnknownAccountError, AccountExistsError))


async def _patch_one(connection: AsyncConnection, change: _Patched) -> None:
    if await events.logged(connection, change.act):
        return
    # The number is taken first, for keys and accounts alike: that way no two changes wait for each other.
    number = await generation.advance(connection)
    here = account.c.id == change.account_id
    row = (await connection.execute(select(account).where(here))).first()
    if row is None:
        raise UnknownAccountError(f"There is no account {change.account_id}.")
    values = change.patch.values(row)
    if not values:
        return
    if "name" in values:
        await _check_free(connection, str(values["name"]))
    await connection.execute(update(account).where(here).values(values))
    owned = api_key.c.account_id == change.account_id
    # In order, so that two processes on Postgres cannot wait for each other.
    await connection.execute(select(api_key.c.id).where(owned).order_by(api_key.c.id).with_for_update())
    await connection.execute(update(api_key).where(owned).values(generation=number))
    await events.log(connection, change.act, changes(row, values))


async def _check_free(connection: AsyncConnection, name: str) -> None:
    if (await connection.execute(select(account.c.id).where(account.c.name == name))).first() is not None:
        raise AccountExistsError(f"There is an account {name!r} already.")


def _row(record: Account) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "created": record.created,
        "disabled": record.disabled,
        "limits": msgspec.to_builtins(record.limits) or None,
        "metadata": dict(record.metadata) or None,
    }


def _account(row: Row[Any]) -> Account:
    limits = msgspec.convert(row.limits or {}, Overrides)
    return Account(row.id, row.name, row.created, row.disabled, limits, row.metadata or {})
