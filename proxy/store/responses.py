"""Stored responses as rows, in and out. An account finds its own, and none that has expired.

What a request and its answer were is text here: JSON that nobody looks into.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import ColumnElement, Select, delete, func, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import stored_response as table
from proxy.store.writer import Writer

# A conversation may have so many turns.
MOST_TURNS: Final = 1000
# What one commit of a purge deletes.
PURGED_AT_ONCE: Final = 200


class ConversationTooLongError(Exception):
    """It has more turns than `MOST_TURNS`, or more bytes than the caller takes."""


@dataclass(frozen=True, slots=True)
class Owned:
    """Which response, and whose it must be, at what moment."""

    id: str
    account_id: str
    now: dt.datetime


@dataclass(frozen=True, slots=True)
class Turn:
    """The items of a request, a JSON array, and the response object that answered it."""

    input: str
    response: str


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A row. `previous_id` is the response that it goes on from."""

    id: str
    account_id: str
    previous_id: str | None
    model: str
    created: dt.datetime
    expires: dt.datetime
    turn: Turn


@dataclass(frozen=True, slots=True)
class _Kept:
    response: StoredResponse
    most_bytes: int


class StoredResponses:
    """The table of stored responses. Stateless; an account may hold `most_bytes`, and loses its oldest beyond that."""

    def __init__(self, writer: Writer, most_bytes: int) -> None:
        self._writer = writer
        self._most_bytes = most_bytes

    def keep(self, new: StoredResponse) -> asyncio.Future[None]:
        """Done when it is on disk. The future fails with StorageError."""
        return self._writer.submit(_keep, _Kept(new, self._most_bytes))

    async def find(self, wanted: Owned) -> Turn | None:
        """Raises StorageError."""
        found = await self._writer.read(select(table.c.input, table.c.response).where(*_owned(wanted)))
        return Turn(*tuple(found[0])) if found else None

    async def conversation(self, last: Owned, most_bytes: int) -> list[Turn] | None:
        """The turns up to this one, the oldest first; None if it or one before it is not there (any more).

        Raises ConversationTooLongError, StorageError.
        """
        rows = await self._writer.read(_conversation(last, most_bytes))
        if not rows:
            return None
        oldest = rows[0]
        if oldest.total > most_bytes or (oldest.previous_id is not None and oldest.place == MOST_TURNS):
            raise ConversationTooLongError
        return [Turn(row.input, row.response) for row in rows] if oldest.previous_id is None else None

    async def delete(self, wanted: Owned) -> bool:
        """Whether it was there; returns when it is gone from the disk. Raises StorageError."""
        if not await self._writer.read(select(table.c.id).where(*_owned(wanted))):
            return False
        await self._writer.submit(_delete, wanted.id)
        return True

    async def purge(self, now: dt.datetime) -> int:
        """Delete some of what has expired, and say how many: none are left if they are none. Raises StorageError."""
        expired = select(table.c.id).where(table.c.expires <= now).order_by(table.c.expires).limit(PURGED_AT_ONCE)
        rows = await self._writer.read(expired)
        await asyncio.gather(*(self._writer.submit(_delete, row.id) for row in rows))
        return len(rows)


def _owned(wanted: Owned) -> tuple[ColumnElement[bool], ...]:
    return table.c.id == wanted.id, table.c.account_id == wanted.account_id, table.c.expires > wanted.now


def _conversation(last: Owned, most_bytes: int) -> Select[tuple[str, str, str | None, int, int]]:
    """From the last turn back, until there is none before or it is too much already; `place` counts from the last."""
    columns = (table.c.id, table.c.previous_id, table.c.bytes.label("total"), literal(1).label("place"))
    after = select(*columns).where(*_owned(last)).cte("conversation", recursive=True)
    before = table.alias("before")
    turns = after.union_all(
        select(before.c.id, before.c.previous_id, after.c.total + before.c.bytes, after.c.place + 1)
        .join(after, before.c.id == after.c.previous_id)
        .where(before.c.account_id == last.account_id, before.c.expires > last.now)
        .where(after.c.place < MOST_TURNS, after.c.total <= most_bytes)
    )
    return (
        select(table.c.input, table.c.response, turns.c.previous_id, turns.c.total, turns.c.place)
        .join(turns, table.c.id == turns.c.id)
        .order_by(turns.c.place.desc())
    )


async def _keep(connection: AsyncConnection, new: Sequence[_Kept]) -> None:
    """A row that is there already was written by a commit that seemed to fail."""
    ids = [kept.response.id for kept in new]
    there = set((await connection.execute(select(table.c.id).where(table.c.id.in_(ids)))).scalars())
    if rows := [_row(kept.response) for kept in new if kept.response.id not in there]:
        await connection.execute(insert(table), rows)
    for account_id, most_bytes in {(kept.response.account_id, kept.most_bytes) for kept in new}:
        await _trim(connection, account_id, most_bytes)


async def _trim(connection: AsyncConnection, account_id: str, most_bytes: int) -> None:
    """Delete the oldest of an account until the others have `most_bytes` at most."""
    own = table.c.account_id == account_id
    held = (await connection.execute(select(func.sum(table.c.bytes)).where(own))).scalar()
    if held is None or held <= most_bytes:
        return
    newest_first = (table.c.created.desc(), table.c.id.desc())
    so_far = select(table.c.id, func.sum(table.c.bytes).over(order_by=newest_first).label("held")).where(own).subquery()
    too_many = select(so_far.c.id).where(so_far.c.held > most_bytes)
    await connection.execute(delete(table).where(table.c.id.in_(too_many)))


async def _delete(connection: AsyncConnection, ids: Sequence[str]) -> None:
    await connection.execute(delete(table).where(table.c.id.in_(ids)))


def _row(new: StoredResponse) -> dict[str, object]:
    turn = asdict(new.turn)
    columns = {name: value for name, value in asdict(new).items() if name != "turn"}
    return {**columns, **turn, "bytes": sum(len(text.encode()) for text in turn.values())}
