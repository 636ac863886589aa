"""The way into the database: its connection, its transactions, the lock on its file. No table, no query.

SQLite from 3.7.0 to 3.51.2 may lose committed pages when two connections reset the write-ahead log at the same instant
(sqlite.org/wal.html, "The WAL-Reset Bug"). So there is exactly one connection, for reads and writes alike, and an
exclusive lock on `<file>.lock` keeps a second process from opening another. Foreign exceptions end here.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from proxy.settings import Database as DatabaseSettings

# For `doctor`: the versions of SQLite, first and last, that need the one connection and the lock.
WAL_RESET_BUG: Final = ((3, 7, 0), (3, 51, 2))
DRIVER: Final = "sqlite+aiosqlite"
# The execution option of a transaction that will write. It takes SQLite's write lock at once: one that reads first and
# then finds another writer ahead is refused without a wait, whatever the busy_timeout.
WRITES: Final = "tollhouse_writes"


class StorageError(Exception):
    """The database cannot do it now: locked, full, gone. The same may work later."""


class StorageRejectedError(StorageError):
    """The database will not take this statement, now or later: a constraint or a type forbids it."""


class StorageLockedError(StorageError):
    """Another process has the database open. `pid` is 0 if it cannot be told."""

    def __init__(self, path: Path, pid: int) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{path} is open in {holder}. Only one process may open it at a time: stop that one first, "
            "or give it the command through its admin socket."
        )
        self.path = path
        self.pid = pid


class Database:
    """One open database. Its only mutable state is SQLAlchemy's pool of one connection, for which all wait in order."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._reading = engine
        self._writing = engine.execution_options(**{WRITES: True})

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


@contextlib.asynccontextmanager
async def open_database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    """Open it for this process alone, making its file (0600) and folder (0700) if they are absent.

    Raises StorageLockedError, StorageError. Whether its tables are the right ones is for `migrate.require_head`.
    """
    path = file_of(settings)
    descriptor = await asyncio.to_thread(_claim, path)
    try:
        # Making it looks at the file system.
        engine = await asyncio.to_thread(_engine, settings)
        try:
            database = Database(engine)
            async with database.read() as connection:
                await connection.execute(text("SELECT 1 FROM sqlite_master"))
            yield database
        finally:
            await engine.dispose()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """The same lock, for code without an event loop. Raises StorageLockedError, StorageError."""
    descriptor = _claim(path)
    try:
        yield
    finally:
        os.close(descriptor)


def file_of(settings: DatabaseSettings) -> Path:
    """The database's file. Raises StorageError for what is not a file of SQLite's."""
    with translated():
        url = make_url(settings.url)
    if url.drivername != DRIVER or not url.database or url.database == ":memory:" or url.query:
        # The URL may hold a password, so only its scheme is told.
        raise StorageError(f"database.url must be `{DRIVER}:///path/to/file`, not a {url.drivername} URL of that form.")
    return Path(url.database)


def _engine(settings: DatabaseSettings) -> AsyncEngine:
    engine = create_async_engine(
        make_url(settings.url),
        pool_size=1,
        max_overflow=0,
        connect_args={"timeout": settings.busy_timeout_s},
        hide_parameters=True,
    )
    prepare(engine.sync_engine, settings)
    return engine


def prepare(engine: Engine, settings: DatabaseSettings) -> None:
    """Have the engine set up its connection, and begin every transaction: the driver does so only before it writes."""

    def connect(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {settings.synchronous}")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Content that is deleted is not to be read in a free page.
        cursor.execute("PRAGMA secure_delete = ON")
        cursor.close()

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Foreign exceptions become StorageError here, and nowhere else."""
    try:
        yield
    except SQLAlchemyError as exc:
        # SQLAlchemy's own text of a failed statement is long and may hold its values.
        cause = exc.orig if isinstance(exc, StatementError) else exc
        if _is_statements_fault(exc):
            raise StorageRejectedError(f"The database rejects it: {cause}") from exc
        raise StorageError(f"The database failed: {cause}") from exc


def _is_statements_fault(exc: SQLAlchemyError) -> bool:
    """A StatementError that is no DBAPIError never came to the database: a value could not be converted."""
    if isinstance(exc, DBAPIError):
        return isinstance(exc, DataError | IntegrityError | ProgrammingError)
    return isinstance(exc, StatementError)


def _claim(path: Path) -> int:
    """Lock the database for this process and make its file; the lock lasts until the descriptor is closed."""
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise StorageError(f"Cannot make {lock}: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        # SQLite gives its WAL the mode of the file, so the file is made here. Closing it drops no lock of SQLite's:
        # nobody in this process has it open.
        made = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(made, 0o600)
        os.close(made)
    except BlockingIOError as exc:
        holder = os.pread(descriptor, 20, 0)
        os.close(descriptor)
        raise StorageLockedError(path, int(holder) if holder.isdigit() else 0) from exc
    except OSError as exc:
        os.close(descriptor)
        raise StorageError(f"Cannot open {path}: {exc.strerror}") from exc
    return descriptor
