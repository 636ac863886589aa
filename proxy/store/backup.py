"""A copy of a database that is a file, beside the process that has it open. Blocking.

The copy is of one moment: it is made within one reading transaction, which waits for nobody and holds nobody up. The
database is opened for reading only, so that this process never resets the write-ahead log (see `sqlite`).
"""

import contextlib
import os
import sqlite3
from pathlib import Path

from proxy.settings import Database as DatabaseSettings
from proxy.store import address, migrate
from proxy.store.failure import SchemaError, StorageError, translated


class BackupFileError(Exception):
    """The copy's file cannot be made. The message says which and why."""


def back_up(settings: DatabaseSettings, target: Path) -> int:
    """Copy the database into a new file of this user's alone, check the copy, and give its size in bytes.

    Raises BackupFileError, SchemaError for a database without tables, and StorageError: also for one that is no file.
    """
    source = address.file_of(settings)
    if not source.exists():
        raise StorageError(f"There is no database at {source}.")
    if migrate.current(settings) is None:
        raise SchemaError(f"{source} has no tables yet: there is nothing to back up.")
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise BackupFileError(f"{target} is there already; name another file.") from None
    except OSError as exc:
        raise BackupFileError(f"Cannot make {target}: {exc.strerror}.") from exc
    try:
        with translated():
            _copy(source, target, settings.busy_timeout_s)
    except BaseException:
        # Half a copy must not be taken for one.
        target.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def _copy(source: Path, target: Path, timeout_s: float) -> None:
    opened = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout_s)
    with contextlib.closing(opened), contextlib.closing(sqlite3.connect(target)) as copy:
        opened.backup(copy)
        # What is kept as one file needs no log beside it.
        copy.execute("PRAGMA journal_mode = DELETE")
        found = copy.execute("PRAGMA integrity_check").fetchone()
    if found != ("ok",):
        raise StorageError(f"The copy is damaged, and so is the database, perhaps: {found[0]}")
    with target.open("rb+") as file:
        os.fsync(file.fileno())
