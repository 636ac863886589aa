"""API keys as rows, in and out. What a key looks like, and how its MAC is made, is not known here."""

import asyncio
import builtins
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import api_key
from proxy.store.writer import Writer


class UnknownKeyError(Exception):
    """No key has this id."""


class KeyExistsError(Exception):
    """A key has this id already."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key. `models` of None means all that its tier allows; `generation` grows whenever the row changes in a way that
    a cached copy must not outlive.
    """

    key_id: str
    account_id: str
    name: str
    tier: str
    models: frozenset[str] | None
    mac: bytes
    mac_version: int
    created: dt.datetime
    expires: dt.datetime | None = None
    last_used: dt.datetime | None = None
    generation: int = 1
    revoked: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class _Revoked:
    key_id: str
    revoked: dt.datetime


@dataclass(frozen=True, slots=True)
class _Used:
    key_id: str
    last_used: dt.datetime


class Keys:
    """The table of keys. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def create(self, new: KeyRecord) -> None:
        """Returns when it is on disk. Raises KeyExistsError, and StorageError, also if there is no such account."""
        await self._writer.submit(_insert, new)

    async def lookup(self, key_id: str) -> KeyRecord | None:
        found = await self._writer.read(select(api_key).where(api_key.c.id == key_id))
        return _record(found[0]) if found else None

    async def list(self, account_id: str | None = None) -> builtins.list[KeyRecord]:
        """All of them, or those of an account, the oldest first."""
        query = select(api_key).order_by(api_key.c.created, api_key.c.id)
        if account_id is not None:
            query = query.where(api_key.c.account_id == account_id)
        return [_record(row) for row in await self._writer.read(query)]

    async def revoke(self, key_id: str, moment: dt.datetime) -> None:
        """Returns when it is on disk. Once revoked a key stays so, as of the first time. Raises UnknownKeyError."""
        await self._writer.submit(_revoke, _Revoked(key_id, moment))

    def touch(self, key_id: str, moment: dt.datetime) -> asyncio.Future[None]:
        """Note when it was last used. The caller sees to it that this is not with every request."""
        return self._writer.submit(_touch, _Used(key_id, moment))


async def _insert(connection: AsyncConnection, new: Sequence[KeyRecord]) -> None:
    """A row that is there already, all the same, was written by a commit that seemed to fail."""
    for record in new:
        found = (await connection.execute(select(api_key).where(api_key.c.id == record.key_id))).first()
        if found is None:
            await connection.execute(insert(api_key), [_row(record)])
        elif _record(found) != record:
            raise KeyExistsError(f"There is a key {record.key_id} already.")


async def _revoke(connection: AsyncConnection, revoked: Sequence[_Revoked]) -> None:
    for record in revoked:
        key = api_key.c.id == record.key_id
        if (await connection.execute(select(api_key.c.id).where(key))).first() is None:
            raise UnknownKeyError(f"There is no key {record.key_id}.")
        values = {"revoked": record.revoked, "generation": api_key.c.generation + 1}
        await connection.execute(update(api_key).where(key, api_key.c.revoked.is_(None)).values(values))


async def _touch(connection: AsyncConnection, used: Sequence[_Used]) -> None:
    statement = update(api_key).where(api_key.c.id == bindparam("of")).values(last_used=bindparam("at"))
    await connection.execute(statement, [{"of": record.key_id, "at": record.last_used} for record in used])


def _row(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.key_id,
        "account_id": record.account_id,
        "name": record.name,
        "tier": record.tier,
        "models": None if record.models is None else sorted(record.models),
        "mac": record.mac,
        "mac_version": record.mac_version,
        "created": record.created,
        "expires": record.expires,
        "last_used": record.last_used,
        "generation": record.generation,
        "revoked": record.revoked,
    }


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        key_id=row.id,
        account_id=row.account_id,
        name=row.name,
        tier=row.tier,
        models=None if row.models is None else frozenset(row.models),
        mac=row.mac,
        mac_version=row.mac_version,
        created=row.created,
        expires=row.expires,
        last_used=row.last_used,
        generation=row.generation,
        revoked=row.revoked,
    )
