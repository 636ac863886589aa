"""The lives of proxy processes, one row each, and their leases: an open ledger row of a life that is over is an orphan.

A living process is seen every few seconds. One that is not seen for `LEASE_S`, by the database's own clock, is taken
for dead, and another one becomes the keeper of its open rows: one alone, because whoever comes second finds the row
changed.
"""

import asyncio
import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, exists, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import boot, ledger
from proxy.store.writer import Writer

LEASE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Boot:
    """A life that begins. `place` is where its pid means something."""

    id: str
    pid: int
    started: dt.datetime
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Other:
    """Another life that has not ended in order. `lapsed`: it was not seen for as long as a lease is."""

    id: str
    pid: int
    place: str | None
    seen: dt.datetime | None
    keeper: str | None
    lapsed: bool


@dataclass(frozen=True, slots=True)
class _Ended:
    boot_id: str
    ended: dt.datetime


@dataclass(frozen=True, slots=True)
class _Kept:
    other: Other
    keeper: str


class Boots:
    """The table of boots. Stateless. Where the database is not `shared`, everybody else is dead."""

    def __init__(self, writer: Writer, *, shared: bool = False) -> None:
        self._writer = writer
        self._shared = shared

    def begin(self, begun: Boot) -> asyncio.Future[None]:
        return self._writer.submit(_insert, begun)

    def end(self, boot_id: str, ended: dt.datetime) -> asyncio.Future[None]:
        """The boot ended in order: none of its ledger rows is open any more."""
        return self._writer.submit(_end, _Ended(boot_id, ended))

    def beat(self, boot_id: str) -> asyncio.Future[None]:
        """It is alive, whatever others have taken it for meanwhile. Fails with StorageError."""
        return self._writer.submit(_beat, boot_id)

    async def others(self, boot_id: str) -> list[Other]:
        """Those that have not ended. Raises StorageError."""
        lapsed = boot.c.seen.is_(None) | (boot.c.seen < func.now() - dt.timedelta(seconds=LEASE_S))
        columns = (boot.c.id, boot.c.pid, boot.c.place, boot.c.seen, boot.c.keeper)
        query = select(*columns, (lapsed if self._shared else literal(1)).label("lapsed"))
        found = await self._writer.read(query.where(boot.c.ended.is_(None), boot.c.id != boot_id).order_by(boot.c.id))
        return [Other(row.id, row.pid, row.place, row.seen, row.keeper, bool(row.lapsed)) for row in found]

    def keep(self, other: Other, keeper: str) -> asyncio.Future[None]:
        """Become the keeper of a dead one's rows, unless it or somebody else was quicker. Fails with StorageError."""
        return self._writer.submit(_keep, _Kept(other, keeper))

    def end_kept(self, keeper: str, ended: dt.datetime) -> asyncio.Future[None]:
        """The dead that it keeps and that have no open row any more are over. Fails with StorageError."""
        return self._writer.submit(_end_kept, _Ended(keeper, ended))


def here() -> str | None:
    """Where a pid of ours means a process: this start of the machine, and this namespace. None if it cannot be told."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{machine}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def is_gone(other: Other, place: str | None) -> bool:
    """Whether the process is known to have ended, without waiting for its lease to lapse."""
    if place is None or other.place != place:
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


async def _insert(connection: AsyncConnection, boots: Sequence[Boot]) -> None:
    """A row that is there already was written by a commit that seemed to fail."""
    for begun in boots:
        if (await connection.execute(select(boot.c.id).where(boot.c.id == begun.id))).first() is None:
            row = {"id": begun.id, "pid": begun.pid, "started": begun.started, "place": begun.place}
            await connection.execute(insert(boot).values(**row, seen=_now(connection)))


async def _end(connection: AsyncConnection, ends: Sequence[_Ended]) -> None:
    statement = update(boot).where(boot.c.id == bindparam("of")).values(ended=bindparam("at"))
    await connection.execute(statement, [{"of": end.boot_id, "at": end.ended} for end in ends])


async def _beat(connection: AsyncConnection, boot_ids: Sequence[str]) -> None:
    alive = {"seen": _now(connection), "ended": None, "keeper": None}
    await connection.execute(update(boot).where(boot.c.id.in_(set(boot_ids))).values(alive))


async def _keep(connection: AsyncConnection, claims: Sequence[_Kept]) -> None:
    for claim in claims:
        other = claim.other
        as_found = (
            boot.c.ended.is_(None)
            & boot.c.seen.is_not_distinct_from(other.seen)
            & boot.c.keeper.is_not_distinct_from(other.keeper)
        )
        statement = update(boot).where(boot.c.id == other.id, as_found)
        await connection.execute(statement.values(keeper=claim.keeper, seen=_now(connection)))


async def _end_kept(connection: AsyncConnection, keepers: Sequence[_Ended]) -> None:
    for keeper in keepers:
        is_open = exists().where(ledger.c.boot_id == boot.c.id, ledger.c.state == "reserved")
        dead = (boot.c.keeper == keeper.boot_id) & boot.c.ended.is_(None)
        await connection.execute(update(boot).where(dead, ~is_open).values(ended=keeper.ended))


def _now(connection: AsyncConnection) -> ColumnElement[Any]:
    """By the database's clock, which is the same for all; on SQLite in the words in which a moment is bound."""
    return func.strftime("%Y-%m-%d %H:%M:%f000", "now") if connection.dialect.name == "sqlite" else func.now()
