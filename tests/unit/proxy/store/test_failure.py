"""Every foreign exception becomes a StorageError, says whose fault it is, and quotes no value."""

import sqlite3

import asyncpg
import pytest
from sqlalchemy import exc

from proxy.store.failure import StorageError, StorageRejectedError, translated

CANARY = "canary"


def every_subclass(kind: type[BaseException]) -> list[type[BaseException]]:
    return [kind, *(deeper for direct in kind.__subclasses__() for deeper in every_subclass(direct))]


@pytest.mark.parametrize("kind", every_subclass(exc.SQLAlchemyError))
def test_every_exception_of_sqlalchemy_is_translated(kind: type[BaseException]) -> None:
    error = kind.__new__(kind)
    if isinstance(error, exc.StatementError):
        error.orig = sqlite3.Error("why")
    with pytest.raises(StorageError) as raised, translated():
        raise error
    reached = issubclass(kind, exc.DBAPIError)
    at_fault = exc.IntegrityError | exc.DataError | exc.ProgrammingError if reached else exc.StatementError
    assert isinstance(raised.value, StorageRejectedError) == issubclass(kind, at_fault)
    assert raised.value.__cause__ is error


OF_POSTGRES = sorted(
    {
        *every_subclass(asyncpg.PostgresError),
        *every_subclass(asyncpg.InterfaceError),
        *every_subclass(asyncpg.InternalClientError),
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", OF_POSTGRES)
@pytest.mark.parametrize("through_sqlalchemy", [True, False])
def test_every_exception_of_the_driver_is_translated(kind: type[BaseException], through_sqlalchemy: bool) -> None:
    """It comes as it is while a connection is made, and through SQLAlchemy afterwards."""
    error = kind.__new__(kind, "why")
    error.args = ("why",)
    raises: BaseException = error
    if through_sqlalchemy:
        raises = exc.DBAPIError("INSERT", {"a": CANARY}, _adapted(error))
    with pytest.raises(StorageError) as raised, translated():
        raise raises
    state = getattr(kind, "sqlstate", None) or ""
    at_fault = state.startswith(("22", "23", "42")) or kind.__name__ == "DataError"
    assert isinstance(raised.value, StorageRejectedError) == at_fault
    assert CANARY not in str(raised.value)


def _adapted(error: BaseException) -> Exception:
    """As SQLAlchemy hands on what the driver raised."""
    adapted = exc.SQLAlchemyError(*error.args)
    adapted.sqlstate = getattr(error, "sqlstate", None)  # type: ignore[attr-defined]  # of the driver's adapter
    adapted.__cause__ = error
    return adapted


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(111, "Connection refused"), TimeoutError(), BrokenPipeError()]
)
def test_what_the_system_raises_is_translated(error: OSError) -> None:
    with pytest.raises(StorageError, match="The database failed: ") as raised, translated():
        raise error
    assert not isinstance(raised.value, StorageRejectedError)


def test_what_is_not_foreign_passes() -> None:
    class OurOwnError(Exception):
        pass

    with pytest.raises(OurOwnError), translated():
        raise OurOwnError
