"""The schema's revision: what it is, what it should be, and the way there. Alembic without an ini file.

The steps are in the package `migrations`. Everything here blocks: on an event loop, call it in a thread.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, inspect, text
from sqlalchemy.pool import NullPool

import migrations
from proxy.settings import Database as DatabaseSettings
from proxy.store import address, postgres, sqlite
from proxy.store.failure import SchemaError, StorageError, translated

T = TypeVar("T")
# Two processes that upgrade one Postgres at once: the second waits for this lock, and finds nothing to do. The number
# is ours alone, "toll" in ASCII.
UPGRADE_LOCK = text("SELECT pg_advisory_xact_lock(1953459308)")
_SHOWN_TABLES: Final = 3
# Of a revision that this version does not know, and what to do about it.
NEWER: Final = "a newer Tollhouse has upgraded it"
INSTEAD: Final = "Run that one, or restore a backup."


def head() -> str:
    """The revision that this version of the program works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SchemaError("This installation has no migrations: install it again.")
    return revision


def current(settings: DatabaseSettings) -> str | None:
    """The revision in the database; None if it has no tables, or is not there. Beside a running server too.

    SQLite is read without the lock: a connection that neither writes nor checkpoints cannot harm the write-ahead log.
    But it makes one, with the mode of the file, so one that is not to be written is not read. Raises StorageError, and
    SchemaError for a file of SQLite's that is another program's.
    """
    if not address.is_file(settings):
        return _on_postgres(settings, _revision)
    path = address.file_of(settings)
    if not path.exists():
        return None
    if closed := address.unwritable(settings):
        raise StorageError(f"This user may not write {', '.join(map(str, closed))}.")
    url = URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(url, poolclass=NullPool)
    try:
        with translated(), engine.connect() as connection:
            there = _revision(connection)
            strange = sorted(inspect(connection).get_table_names()) if there is None else []
    except StorageError as exc:
        raise type(exc)(f"{path}: {exc}") from exc
    if strange:
        raise SchemaError(
            f"{path} has tables of another program ({', '.join(strange[:_SHOWN_TABLES])}): "
            "write another file in database.url."
        )
    return there


def require_head(settings: DatabaseSettings) -> None:
    """Raises SchemaError if it has no tables or those of another version, StorageError if it cannot be read."""
    there, wanted = current(settings), head()
    if there is None:
        raise SchemaError(
            f"{address.described(settings)} has no tables yet: `tollhouse up` makes them, or: tollhouse db upgrade"
        )
    _refuse_unknown(there, wanted)
    if there != wanted:
        raise SchemaError(
            f"The database is at revision {there}, this version needs {wanted}: run `tollhouse db upgrade`."
        )


def upgrade(settings: DatabaseSettings) -> None:
    """Bring the database to the head in one transaction, making SQLite's file if it is absent.

    Raises StorageLockedError, StorageError, and SchemaError if it is ahead of this version.
    """
    if not address.is_file(settings):
        _on_postgres(settings, _upgrade_alone)
        return
    path = address.file_of(settings)
    current(settings)
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    sqlite.prepare(engine, settings)
    with sqlite.claimed(path), translated(), engine.connect() as connection:
        connection.execution_options(**{sqlite.WRITES: True})
        with connection.begin():
            _upgrade(connection)


def _on_postgres(settings: DatabaseSettings, work: Callable[[Connection], T]) -> T:
    """Do it in a transaction on a connection of its own. The only driver is an asynchronous one."""

    async def connected() -> T:
        engine = postgres.engine_of(settings)
        try:
            with translated():
                async with engine.begin() as connection:
                    return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return asyncio.run(connected())


def _upgrade_alone(connection: Connection) -> None:
    # Tables and indexes of a full ledger take their time.
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(UPGRADE_LOCK)
    _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    _refuse_unknown(_revision(connection), head())
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def is_known(revision: str) -> bool:
    """Whether this version has that revision; if not, a newer one has brought a database to it."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _refuse_unknown(there: str | None, wanted: str) -> None:
    if there is not None and not is_known(there):
        raise SchemaError(
            f"The database is at revision {there}, which this version does not know (it needs {wanted}): "
            f"{NEWER}. {INSTEAD}"
        )


def _config() -> Config:
    config = Config()
    # The option goes through ConfigParser, to which % means something.
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return config
