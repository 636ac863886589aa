"""A database that is a file: its connection, and the lock that keeps it to one process. No table, no query.

SQLite from 3.7.0 to 3.51.2 may lose committed pages when two connections reset the write-ahead log at the same instant
(sqlite.org/wal.html, "The WAL-Reset Bug"). So there is exactly one connection, for reads and writes alike, and an
exclusive lock on `<file>.lock` keeps a second process from opening another.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import aiosqlite
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from proxy.settings import Database as DatabaseSettings
from proxy.store import address
from proxy.store.failure import StorageError
from proxy.store.visit import Visits

# For `doctor`: the versions of SQLite, first and last, that need the one connection and the lock.
WAL_RESET_BUG: Final = ((3, 7, 0), (3, 51, 2))
# The execution option of a transaction that will write. It takes SQLite's write lock at once: one that reads first and
# then finds another writer ahead is refused without a wait, whatever the busy_timeout.
WRITES: Final = "tollhouse_writes"


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


def engine_of(settings: DatabaseSettings) -> AsyncEngine:
    """An engine on the file, with the one connection. It looks at the file system."""
    engine = create_async_engine(
        address.url_of(settings),
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


def visits_to(engine: AsyncEngine) -> Visits:
    """The visits to the one connection of an engine that has none yet."""
    visits = Visits()

    def connect(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        visits.connected(cast("aiosqlite.Connection", connection.driver_connection))

    event.listen(engine.sync_engine, "connect", connect)
    return visits


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """The lock, for as long as this lasts. Raises StorageLockedError, StorageError."""
    descriptor = claim(path)
    try:
        yield
    finally:
        os.close(descriptor)


def claim(path: Path) -> int:
    """Lock the database for this process and make its file (0600) and folder (0700); the lock lasts until the
    descriptor is closed. Raises StorageLockedError, StorageError.
    """
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
