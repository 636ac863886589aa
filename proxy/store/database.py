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
from proxy.store import address, postgres, sqlite, visit
from proxy.store.failure import StorageError, StorageRejectedError, translated
from proxy.store.sqlite import WRITES, StorageLockedError

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
    """One open database. Its only mutable state is SQLAlchemy's pool: for the one connection to SQLite all wait in
    order. `shared`: other processes may have it open too.
    """

    def __init__(self, engine: AsyncEngine, *, shared: bool = False) -> None:
        self._reading = engine
        self._writing = engine.execution_options(**{WRITES: True})
        self.shared = shared

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes nothing. Raises StorageError."""
        with translated():
            async with self._reading.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is on disk at the end, and undone if the body raises. Raises StorageError."""
        with translated():
            async with self._writing.begin() as connection:
                yield connection

    async def transact(self, work: visit.Work[R]) -> R:
        """Run `work` in a transaction that is on disk at the end, and undone if it raises. Raises StorageError.

        It awaits nothing but the connection that it is given, and need not run on this thread.
        """
        if self.shared:
            async with self.write() as connection:
                return await work(connection)
        with translated():
            async with self._writing.connect() as connection:
                return await visit.run(connection, work, sqlite.begin_writing)


@contextlib.asynccontextmanager
async def open_database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    """Open it: a file for this process alone, making it (0600) and its folder (0700) if they are absent.

    Raises StorageLockedError, StorageError. Whether its tables are the right ones is for `migrate.require_head`.
    """
    if not address.is_file(settings):
        async with _opened(await asyncio.to_thread(postgres.engine_of, settings), shared=True) as database:
            yield database
        return
    descriptor = await asyncio.to_thread(sqlite.claim, address.file_of(settings))
    try:
        # Making it looks at the file system.
        async with _opened(await asyncio.to_thread(sqlite.engine_of, settings), shared=False) as database:
            yield database
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _opened(engine: AsyncEngine, *, shared: bool) -> AsyncIterator[Database]:
    try:
        database = Database(engine, shared=shared)
        async with database.read() as connection:
            await connection.execute(text(_PROBE[shared]))
        yield database
    finally:
        await engine.dispose()
