"""What goes wrong with a database, and the one place where foreign exceptions become ours. No SQL.

What a statement held stays out of every message: the drivers' own texts of bad values and of broken rows quote them.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError, StatementError

# Of Postgres' SQLSTATEs the classes that blame the statement: data, constraints, syntax and names
# (postgresql.org/docs/current/errcodes-appendix.html).
STATEMENTS_FAULT: Final = ("22", "23", "42")
# Of these the messages quote the values.
QUOTES_VALUES: Final = "22"
POSTGRES_DRIVER: Final = "asyncpg"


class StorageError(Exception):
    """The database cannot do it now: locked, full, gone. The same may work later."""


class StorageRejectedError(StorageError):
    """The database will not take this statement, now or later: a constraint or a type forbids it."""


class SchemaError(Exception):
    """The tables in the database are not the ones of this version. The message says what to do."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Foreign exceptions become StorageError here, and nowhere else.

    Beside SQLAlchemy's own there are those that come through it as they are: a driver's while it connects, and the
    system's when a connection breaks or takes too long. And SQLite's, where nothing is between.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as exc:
        raise _as_ours(exc) from exc
    except Exception as exc:
        if not _is_postgres_drivers(exc):
            raise
        raise _as_ours(exc) from exc


def _as_ours(exc: Exception) -> StorageError:
    # SQLAlchemy's own text of a failed statement is long and may hold its values.
    cause: BaseException = exc
    if isinstance(exc, StatementError) and exc.orig is not None:
        cause = exc.orig
    if _is_statements_fault(exc, cause):
        return StorageRejectedError(f"The database rejects it: {_told(cause)}")
    return StorageError(f"The database failed: {_told(cause)}")


def _is_statements_fault(exc: Exception, cause: BaseException) -> bool:
    """A StatementError that is no DBAPIError never came to the database: a value could not be converted."""
    state = _sqlstate(cause)
    if state is not None:
        return state.startswith(STATEMENTS_FAULT)
    if _is_bad_argument(cause):
        return True
    if isinstance(exc, DBAPIError):
        return isinstance(exc, DataError | IntegrityError | ProgrammingError)
    if isinstance(exc, sqlite3.Error):
        return isinstance(exc, sqlite3.DataError | sqlite3.IntegrityError | sqlite3.ProgrammingError)
    return isinstance(exc, StatementError)


def _told(cause: BaseException) -> str:
    state = _sqlstate(cause)
    if _is_bad_argument(cause) or (state is not None and state.startswith(QUOTES_VALUES)):
        return f"a value does not fit its column ({_drivers(cause).__class__.__name__})"
    if isinstance(cause, OSError):
        return cause.strerror or cause.__class__.__name__
    # The first argument: as a string the driver's errors have the detail too, which quotes the row.
    return str(cause.args[0]) if cause.args else cause.__class__.__name__


def _sqlstate(cause: BaseException) -> str | None:
    """Postgres' code of an error; None for SQLite's, and for those that did not come from the server."""
    state = getattr(cause, "sqlstate", None)
    return state if isinstance(state, str) else None


def _is_bad_argument(cause: BaseException) -> bool:
    """Whether the driver would not send a value."""
    driver = _drivers(cause)
    return _is_postgres_drivers(driver) and type(driver).__name__ == "DataError"


def _drivers(cause: BaseException) -> BaseException:
    """What the driver raised; SQLAlchemy puts its own between."""
    return cause.__cause__ if cause.__cause__ is not None else cause


def _is_postgres_drivers(exc: BaseException) -> bool:
    """By name: the driver need not be installed."""
    return type(exc).__module__.partition(".")[0] == POSTGRES_DRIVER
