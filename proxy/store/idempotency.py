"""Idempotency keys in the database: which request has one, how that ended, and its answer where that is kept."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import claims
from proxy.store.claims import RESERVED, IdempotencyKey
from proxy.store.tables import idempotency as table
from proxy.store.writer import Writer

PURGED_AT_ONCE: Final = 256
KEEP: Final = (
    update(table)
    .where(table.c.id == bindparam("of"), table.c.request_id == bindparam("by"))
    .values(answer=bindparam("told"))
)


@dataclass(frozen=True, slots=True)
class Earlier:
    """The request that has the key: of what payload, whether it runs, and what it was answered if that was kept."""

    fingerprint: bytes = field(repr=False)
    running: bool
    stream: bool
    answer: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Kept:
    key: IdempotencyKey
    request_id: str
    answer: bytes = field(repr=False)


class IdempotencyKeys:
    """The table. Stateless. Keys are claimed with a reservation; see `proxy.store.claims`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def find(self, new: IdempotencyKey) -> Earlier | None:
        """The request that has the key and does not give it up; None if it is free. Raises StorageError."""
        found = await self._writer.read(claims.IDEMPOTENCY_KEYS.find.params(ids=[new.id]))
        for row in found:
            if claims.idempotency_holds(row, new):
                return Earlier(row.fingerprint, row.state == RESERVED, bool(row.stream), row.answer)
        return None

    async def keep(self, key: IdempotencyKey, request_id: str, answer: bytes) -> None:
        """The answer to the request that has the key. Returns when it is on disk. Raises StorageError."""
        await self._writer.submit(_keep, _Kept(key, request_id, answer))

    async def purge(self, now: dt.datetime) -> int:
        """Delete some of what has expired, and say how many: none are left if they are none. Raises StorageError."""
        expired = select(table.c.id).where(table.c.expires <= now).order_by(table.c.expires).limit(PURGED_AT_ONCE)
        rows = await self._writer.read(expired)
        await asyncio.gather(*(self._writer.submit(_delete, row.id) for row in rows))
        return len(rows)


async def _keep(connection: AsyncConnection, kept: Sequence[_Kept]) -> None:
    await connection.execute(KEEP, [{"of": one.key.id, "by": one.request_id, "told": one.answer} for one in kept])


async def _delete(connection: AsyncConnection, ids: Sequence[str]) -> None:
    await connection.execute(delete(table).where(table.c.id.in_(ids)))
