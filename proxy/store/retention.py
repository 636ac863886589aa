"""Old months of the ledger, deleted a few rows at a time between other commits. The totals in `quota` stay.

An open row is never deleted, however old. From which month on the ledger is whole is written down in the transaction
that first deletes something earlier: before it the totals have no rows to be compared with.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.posting import State
from proxy.store.tables import kept_from, ledger
from proxy.store.writer import Writer

# What one commit deletes. A request's reservation may wait for it.
AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class _Deleted:
    request_id: str
    before: str


class Retention:
    """Deletes what is older than the last `months` months and the current one. Stateless."""

    def __init__(self, writer: Writer, months: int) -> None:
        self._writer = writer
        self._months = months

    async def delete_some(self, now: dt.datetime) -> int:
        """Delete a few old rows, and say how many: none are left if they are none. Raises StorageError."""
        before = first_kept(now, self._months)
        # A row is not much older than its month, and times have an index.
        last = dt.datetime(int(before[:4]), int(before[5:]), 1, tzinfo=dt.UTC) + dt.timedelta(days=1)
        old = (ledger.c.created < last) & (ledger.c.period < before) & (ledger.c.state != State.RESERVED)
        rows = await self._writer.read(select(ledger.c.request_id).where(old).order_by(ledger.c.created).limit(AT_ONCE))
        await asyncio.gather(*(self._writer.submit(_delete, _Deleted(row.request_id, before)) for row in rows))
        return len(rows)


def first_kept(now: dt.datetime, months: int) -> str:
    """The first month that is kept, as a period."""
    utc = now.astimezone(dt.UTC)
    year, month = divmod(utc.year * 12 + utc.month - 1 - months, 12)
    return f"{year:04}-{month + 1:02}"


async def _delete(connection: AsyncConnection, deleted: Sequence[_Deleted]) -> None:
    before = max(row.before for row in deleted)
    await connection.execute(update(kept_from).where(kept_from.c.period < before).values(period=before))
    # Sorted, so that two writers on Postgres cannot wait for each other.
    ids = sorted(row.request_id for row in deleted)
    await connection.execute(delete(ledger).where(ledger.c.request_id.in_(ids), ledger.c.state != State.RESERVED))
