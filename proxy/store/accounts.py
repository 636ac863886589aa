"""Accounts: who keys belong to. Rows in, rows out."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import account
from proxy.store.writer import Writer


class AccountExistsError(Exception):
    """The name is taken."""


@dataclass(frozen=True, slots=True)
class Account:
    """An owner of keys, known by a name that nobody else has."""

    id: str
    name: str
    created: dt.datetime


class Accounts:
    """The table of accounts. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def create(self, new: Account) -> None:
        """Returns when it is on disk. Raises AccountExistsError, StorageError."""
        await self._writer.submit(_insert, new)

    async def find(self, name: str) -> Account | None:
        found = await self._writer.read(select(account).where(account.c.name == name))
        return Account(*tuple(found[0])) if found else None

    async def list(self) -> list[Account]:
        """All of them, by name."""
        return [Account(*tuple(row)) for row in await self._writer.read(select(account).order_by(account.c.name))]


async def _insert(connection: AsyncConnection, new: Sequence[Account]) -> None:
    """A row that is there already, all the same, was written by a commit that seemed to fail."""
    for record in new:
        found = (await connection.execute(select(account).where(account.c.name == record.name))).first()
        if found is None:
            await connection.execute(insert(account), [asdict(record)])
        elif tuple(found) != astuple(record):
            raise AccountExistsError(f"There is an account {record.name!r} already.")
