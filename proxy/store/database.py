"""The way into the database, whether it is a file of SQLite's or a Postgres server. No table, no query.

What each of the two needs is in `sqlite` and `postgres`; foreign exceptions end in `failure`.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.settings import Database as DatabaseSettings
from proxy.store import address, postgres, sqlite
from proxy.store.failure import StorageError, StorageRejectedError, translated
from proxy.store.sqlite import WRITES, StorageLockedError
from proxy.store.visit import Visits, Work

__all__ = [
    "Database",
    "StorageError",
    "StorageLockedError",
    "StorageRejectedError",
    "open_database",
    "translated",
]

R = TypeVar("R")
# Asks for nothing, but of the database itself: SQLite opens its file only when it must.
_PROBE: Final = {True: "SELECT 1", False: "SELECT 1 FROM sqlite_master"}


class Database:
    """One open database. `visits`: to SQLite's one connection, for which all wait in order; None on Postgres, which
    other processes may have open too. Mutable: `_turn`, held while that connection is in use, and SQLAlchemy's pool.
    """

    def __init__(self, engine: AsyncEngine, visits: Visits | None = None) -> None:
        self._reading = engine
        self._writing = engine.execution_options(**{WRITES: True})
        self._visits = visits
        self._turn = contextlib.nullcontext() if visits is None else asyncio.Lock()

    @property
    def shared(self) -> bool:
        """Whether other processes may have it open too."""
        return self._visits is None

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes nothing. Raises StorageError."""
        with translated():
            async with self._turn, self._reading.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is on disk at the end, and undone if the body raises. Raises StorageError."""
        with translated():
            async with self._turn, self._writing.begin() as connection:
                yield connection

    async def transact(self, work: Work[R]) -> R:
        """Run `work` in a transaction that is on disk at the end, and undone if it raises. Raises StorageError.

        It awaits nothing but the connection that it is given, and need not run on this thread.
        """
        if self._visits is None:
            async with self.write() as connection:
                return await work(connection)
        with translated():
            async with self._turn:
                if not self._visits.possible:
                    # SQLAlchemy threw its connection away: it makes another.
                    async with self._reading.connect():
                        pass
                return await self._visits.run(work)


@contextlib.asynccontextmanager
async def open_database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    """Open it: a file for this process alone, making it (0600) and its folder (0700) if they are absent.

    Raises StorageLockedError, StorageError. Whether its tables are the right ones is for `migrate.require_head`.
    """
    if not address.is_file(settings):
        async with _opened(await asyncio.to_thread(postgres.engine_of, settings)) as database:
            yield database
        return
    descriptor = await asyncio.to_thread(sqlite.claim, address.file_of(settings))
    try:
        # Making it looks at the file system.
        engine = await asyncio.to_thread(sqlite.engine_of, settings)
        async with _opened(engine, sqlite.visits_to(engine)) as database:
            yield database
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _opened(engine: AsyncEngine, visits: Visits | None = None) -> AsyncIterator[Database]:
    try:
        database = Database(engine, visits)
        async with database.read() as connection:
            await connection.execute(text(_PROBE[database.shared]))
        yield database
    finally:
        await engine.dispose()
