"""The lives of proxy processes, one row each: a ledger row of a boot that is over, and still open, is an orphan."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import bindparam, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import boot
from proxy.store.writer import Writer


@dataclass(frozen=True, slots=True)
class Boot:
    """A life that begins."""

    id: str
    pid: int
    started: dt.datetime


@dataclass(frozen=True, slots=True)
class _Ended:
    boot_id: str
    ended: dt.datetime


class Boots:
    """The table of boots. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def begin(self, begun: Boot) -> asyncio.Future[None]:
        return self._writer.submit(_insert, begun)

    def end(self, boot_id: str, ended: dt.datetime) -> asyncio.Future[None]:
        """The boot ended in order: none of its ledger rows is open any more."""
        return self._writer.submit(_update, _Ended(boot_id, ended))


async def _insert(connection: AsyncConnection, boots: Sequence[Boot]) -> None:
    await connection.execute(insert(boot), [asdict(begun) for begun in boots])


async def _update(connection: AsyncConnection, ends: Sequence[_Ended]) -> None:
    statement = update(boot).where(boot.c.id == bindparam("of")).values(ended=bindparam("at"))
    await connection.execute(statement, [{"of": end.boot_id, "at": end.ended} for end in ends])
