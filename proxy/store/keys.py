"""API keys as rows, in and out; every change is an event of the audit log and makes a new generation.

What a key looks like, and how its MAC is made, is not known here.
"""

import asyncio
import builtins
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, bindparam, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.policy.schema import NO_OVERRIDES, Overrides
from proxy.store import events, generation
from proxy.store.events import HOUSE, Act, Actor
from proxy.store.patches import Patch, changes, told
from proxy.store.tables import account, api_key
from proxy.store.writer import Refusal, Writer, each

# What of a key the audit log is told. Never a MAC.
TOLD: Final = (
    "account_id",
    "name",
    "tier",
    "models",
    "expires",
    "scopes",
    "limits",
    "metadata",
    "allow_from",
    "deny_from",
)


class UnknownKeyError(Exception):
    """No key has this id."""


class KeyExistsError(Exception):
    """A key has this id already."""


class KeyRevokedError(Exception):
    """The key was revoked, which cannot be undone."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key. `models` and `scopes` of None mean all that its tier allows, and all that a key may do by default.

    `generation` grows whenever the row, or its account's, changes in a way that a cached copy must not outlive.
    `old_mac`, of the secret before the last rotation, is good until `old_until`. The `account_` ones are the account's
    and are not written with the key.
    """

    key_id: str
    account_id: str
    name: str
    tier: str
    models: frozenset[str] | None
    mac: bytes = field(repr=False)
    mac_version: int
    created: dt.datetime
    expires: dt.datetime | None = None
    last_used: dt.datetime | None = None
    generation: int = 1
    revoked: dt.datetime | None = None
    scopes: frozenset[str] | None = None
    limits: Overrides = NO_OVERRIDES
    metadata: Mapping[str, str] = field(default_factory=dict)
    allow_from: tuple[str, ...] = ()
    deny_from: tuple[str, ...] = ()
    old_mac: bytes | None = field(default=None, repr=False)
    old_mac_version: int | None = None
    old_until: dt.datetime | None = None
    account_name: str = field(default="", compare=False)
    account_disabled: dt.datetime | None = None
    account_limits: Overrides = NO_OVERRIDES


@dataclass(frozen=True, slots=True)
class NewSecret:
    """What a rotation writes: the MAC of the new secret, and until when the one before it is good."""

    mac: bytes = field(repr=False)
    mac_version: int
    old_until: dt.datetime


@dataclass(frozen=True, slots=True)
class _Created:
    key: KeyRecord
    act: Act


@dataclass(frozen=True, slots=True)
class _Changed:
    """One key, and what becomes of it. None of the two: it is revoked."""

    key_id: str
    act: Act
    patch: Patch | None = None
    secret: NewSecret | None = None


@dataclass(frozen=True, slots=True)
class _Used:
    key_id: str
    last_used: dt.datetime


class Keys:
    """The table of keys. Stateless. What changes a key returns when the change is on disk."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def create(self, new: KeyRecord, by: Actor = HOUSE) -> None:
        """Raises KeyExistsError, and StorageError, also if there is no such account."""
        await self._writer.submit(_insert, _Created(new, events.begin(by, "key.create", new.key_id, new.created)))

    async def lookup(self, key_id: str) -> KeyRecord | None:
        """An unknown id costs what a known one does: a row is read and made a record of, whosever it is."""
        found = [_record(row) for row in await self._writer.read(_ONE_OR_ANOTHER.params(wanted=key_id))]
        return found[0] if found and found[0].key_id == key_id else None

    async def list(
        self, account_id: str | None = None, *, after: str | None = None, limit: int | None = None
    ) -> builtins.list[KeyRecord]:
        """By id, from behind the id `after` on; those of an account, or all. No limit: all, the oldest first."""
        query = _query().order_by(api_key.c.created, api_key.c.id)
        if limit is not None:
            query = _query().order_by(api_key.c.id).limit(limit)
        if after is not None:
            query = query.where(api_key.c.id > after)
        if account_id is not None:
            query = query.where(api_key.c.account_id == account_id)
        return [_record(row) for row in await self._writer.read(query)]

    async def revoke(self, key_id: str, moment: dt.datetime, by: Actor = HOUSE) -> None:
        """Once revoked a key stays so, as of the first time. Raises UnknownKeyError."""
        await self._writer.submit(_change, _Changed(key_id, events.begin(by, "key.revoke", key_id, moment)))

    async def patch(self, key_id: str, patch: Patch, now: dt.datetime, by: Actor = HOUSE) -> None:
        """Raises UnknownKeyError, KeyRevokedError."""
        await self._writer.submit(_change, _Changed(key_id, events.begin(by, "key.update", key_id, now), patch=patch))

    async def rotate(self, key_id: str, secret: NewSecret, now: dt.datetime, by: Actor = HOUSE) -> None:
        """Raises UnknownKeyError, KeyRevokedError."""
        await self._writer.submit(_change, _Changed(key_id, events.begin(by, "key.rotate", key_id, now), secret=secret))

    def touch(self, key_id: str, moment: dt.datetime) -> asyncio.Future[None]:
        """Note when it was last used. The caller sees to it that this is not with every request."""
        return self._writer.submit(_touch, _Used(key_id, moment))


def _query() -> Select[Any]:
    owner = [account.c[name].label(f"account_{name}") for name in ("name", "disabled", "limits")]
    return select(api_key, *owner).join(account, account.c.id == api_key.c.account_id)


def _one_or_another() -> Select[Any]:
    """The row of the id `wanted`; if there is none, that of the first."""
    first = select(func.min(api_key.c.id)).scalar_subquery()
    wanted = api_key.c.id == bindparam("wanted")
    return _query().where(or_(wanted, api_key.c.id == first)).order_by(wanted.desc()).limit(1)


_ONE_OR_ANOTHER: Final = _one_or_another()


async def _insert(connection: AsyncConnection, new: Sequence[_Created]) -> list[Refusal]:
    return await each(connection, new, _insert_one, (KeyExistsError,))


async def _insert_one(connection: AsyncConnection, created: _Created) -> None:
    """A row that is there already, all the same, was written by a commit that seemed to fail."""
    record = created.key
    found = (await connection.execute(_query().where(api_key.c.id == record.key_id))).first()
    if found is None:
        row = _row(record)
        await connection.execute(insert(api_key), [row])
        given = {name: told(row[name]) for name in TOLD if row[name] is not None}
        await events.log(connection, created.act, {name: (None, value) for name, value in given.items()})
    elif _row(_record(found)) != _row(record):
        raise KeyExistsError(f"There is a key {record.key_id} already.")


async def _change(connection: AsyncConnection, changed: Sequence[_Changed]) -> list[Refusal]:
    return await each(connection, changed, _change_one, (UnknownKeyError, KeyRevokedError))


async def _change_one(connection: AsyncConnection, change: _Changed) -> None:
    if await events.logged(connection, change.act):
        return
    # The number is taken first, for keys and accounts alike: that way no two changes wait for each other.
    number = await generation.advance(connection)
    here = api_key.c.id == change.key_id
    row = (await connection.execute(select(api_key).where(here))).first()
    if row is None:
        raise UnknownKeyError(f"There is no key {change.key_id}.")
    if row.revoked is not None:
        if change.patch is None and change.secret is None:
            return
        raise KeyRevokedError(f"Key {change.key_id} is revoked; it cannot be changed any more.")
    values, seen = _values(change, row)
    if values:
        await connection.execute(update(api_key).where(here).values({**values, "generation": number}))
        await events.log(connection, change.act, seen)


def _values(change: _Changed, row: Row[Any]) -> tuple[dict[str, object], events.Changes]:
    """The columns to write, and what the audit log is told of them."""
    if change.patch is not None:
        values = change.patch.values(row)
        return values, changes(row, values)
    if change.secret is None:
        values = {"revoked": change.act.time}
        return values, changes(row, values)
    kept: dict[str, object] = {"old_until": change.secret.old_until}
    seen = changes(row, kept)
    replaced = {"mac": change.secret.mac, "mac_version": change.secret.mac_version}
    return {**kept, **replaced, "old_mac": row.mac, "old_mac_version": row.mac_version}, seen


async def _touch(connection: AsyncConnection, used: Sequence[_Used]) -> None:
    """A row that another process on Postgres has locked is left: it is not worth waiting for, still less a deadlock."""
    free = select(api_key.c.id).where(api_key.c.id == bindparam("of")).with_for_update(skip_locked=True, key_share=True)
    statement = update(api_key).where(api_key.c.id == free.scalar_subquery()).values(last_used=bindparam("at"))
    await connection.execute(statement, [{"of": record.key_id, "at": record.last_used} for record in used])


def _row(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.key_id,
        "account_id": record.account_id,
        "name": record.name,
        "tier": record.tier,
        "models": _listed(record.models),
        "mac": record.mac,
        "mac_version": record.mac_version,
        "created": record.created,
        "expires": record.expires,
        "last_used": record.last_used,
        "generation": record.generation,
        "revoked": record.revoked,
        "scopes": _listed(record.scopes),
        "limits": msgspec.to_builtins(record.limits) or None,
        "metadata": dict(record.metadata) or None,
        "allow_from": list(record.allow_from) or None,
        "deny_from": list(record.deny_from) or None,
        "old_mac": record.old_mac,
        "old_mac_version": record.old_mac_version,
        "old_until": record.old_until,
    }


def _listed(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


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
        scopes=None if row.scopes is None else frozenset(row.scopes),
        limits=msgspec.convert(row.limits or {}, Overrides),
        metadata=row.metadata or {},
        allow_from=tuple(row.allow_from or ()),
        deny_from=tuple(row.deny_from or ()),
        old_mac=row.old_mac,
        old_mac_version=row.old_mac_version,
        old_until=row.old_until,
        account_name=row.account_name,
        account_disabled=row.account_disabled,
        account_limits=msgspec.convert(row.account_limits or {}, Overrides),
    )
