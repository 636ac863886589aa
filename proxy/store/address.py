"""Where the database is, as `database.url` says it: a file of SQLite's, or a Postgres server. Opens nothing.

No message tells more of the URL than it must: it may hold a password, and a mistyped one anywhere.
"""

import os
from pathlib import Path
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from proxy.settings import Database as DatabaseSettings
from proxy.store.failure import POSTGRES_DRIVER, StorageError

SQLITE: Final = "sqlite+aiosqlite"
POSTGRES: Final = f"postgresql+{POSTGRES_DRIVER}"
# The write-ahead log and its index (sqlite.org/walformat.html), and our lock.
BESIDE: Final = ("-wal", "-shm", ".lock")
FORMS: Final = f"`{SQLITE}:///path/to/file` or `{POSTGRES}://user@host/database`"


def is_file(settings: DatabaseSettings) -> bool:
    """Whether it is a file of SQLite's, and not a server. Raises StorageError if it is neither."""
    return url_of(settings).drivername == SQLITE


def file_of(settings: DatabaseSettings) -> Path:
    """The database's file. Raises StorageError for what is not a file of SQLite's."""
    url = url_of(settings)
    if url.drivername != SQLITE:
        raise StorageError(f"{described(settings)} is no file.")
    return Path(url.database or "")


def url_of(settings: DatabaseSettings) -> URL:
    """The URL in its parts. Raises StorageError."""
    try:
        url = make_url(settings.url)
    except (ArgumentError, ValueError):
        # A port that is no number may be a part of the password.
        raise StorageError(f"database.url cannot be read: it must be {FORMS}.") from None
    if not _is_file(url) and not (url.drivername == POSTGRES and url.database):
        raise StorageError(f"database.url must be {FORMS}, not a {url.drivername} URL of that form.")
    return url


def described(settings: DatabaseSettings) -> str:
    """The file, or the server and the name of the database: for messages and the log. Raises StorageError."""
    url = url_of(settings)
    if url.drivername == SQLITE:
        return url.database or ""
    server = url.host or url.query.get("host", "localhost")
    server = server if isinstance(server, str) else ",".join(server)
    return f"postgresql://{server}{f':{url.port}' if url.port else ''}/{url.database}"


def private_files(settings: DatabaseSettings) -> list[Path]:
    """The files that are to be this user's alone. Raises StorageError."""
    return [file_of(settings)] if is_file(settings) else []


def unwritable(settings: DatabaseSettings) -> list[Path]:
    """What this user may not write of a database that is a file: its folder, the file, what is beside it."""
    found: list[Path] = []
    for file in private_files(settings):
        wanted = {file.parent: os.W_OK | os.X_OK}
        wanted |= {file.with_name(f"{file.name}{end}"): os.R_OK | os.W_OK for end in ("", *BESIDE)}
        found += [path for path, mode in wanted.items() if os.access(path, os.F_OK) and not os.access(path, mode)]
    return found


def _is_file(url: URL) -> bool:
    return url.drivername == SQLITE and bool(url.database) and url.database != ":memory:" and not url.query
