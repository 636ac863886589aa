"""A whole transaction of SQLite's as one visit to the thread of its connection: BEGIN, all statements, COMMIT.

aiosqlite takes every call of the driver to that thread and back, which for a handful of statements is more than twenty
ways there and back: they would be most of what a small commit takes.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

import aiosqlite
from sqlalchemy import Connection, CursorResult, Dialect, Engine, Executable, StaticPool, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection

R = TypeVar("R")
Work = Callable[[AsyncConnection], Coroutine[Any, Any, R]]
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class AtHand:
    """What a transaction wants of an AsyncConnection, where the driver is at hand: nothing ever suspends.

    Mutable: `_alchemy`, SQLAlchemy's view of the same transaction, once a statement wants it.
    """

    def __init__(self, driver: sqlite3.Connection, engine: Engine) -> None:
        self.driver = driver
        self._engine = engine
        self._alchemy: Connection | None = None

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> CursorResult[Any]:
        return self._through_alchemy().execute(statement, parameters)

    async def exec_driver_sql(self, statement: str) -> CursorResult[Any]:
        return self._through_alchemy().exec_driver_sql(statement)

    def close(self) -> None:
        if self._alchemy is not None:
            self._alchemy.close()

    def _through_alchemy(self) -> Connection:
        if self._alchemy is None:
            self._alchemy = self._engine.connect()
        return self._alchemy


class Visits:
    """The visits to one connection, which is between two transactions whenever one begins.

    Mutable: `_driver`, the connection of now, and `_engine`, SQLAlchemy's on it.
    """

    def __init__(self) -> None:
        self._driver: aiosqlite.Connection | None = None
        self._engine: Engine | None = None

    @property
    def possible(self) -> bool:
        """Whether the connection of now is open."""
        return self._driver is not None and self._driver._connection is not None  # noqa: SLF001  as below

    def connected(self, driver: aiosqlite.Connection) -> None:
        """Take this connection from now on."""
        self._driver, self._engine = driver, None

    async def run(self, work: Work[R]) -> R:
        """Run `work` in a transaction of its own. It awaits nothing but its connection.

        Raises what SQLAlchemy and sqlite3 raise. Visits must be possible.
        """
        driver = self._driver
        if driver is None:
            raise RuntimeError("there is no connection")
        connection = driver._conn  # noqa: SLF001  the connection itself has no other name
        # The way that all of the driver's calls go; what is public there are single calls of sqlite3's.
        visit = driver._execute  # noqa: SLF001
        if self._engine is None:
            self._engine = await visit(_engine_on, connection)  # type: ignore[no-untyped-call]
        done: R = await visit(_visit, connection, self._engine, work)  # type: ignore[no-untyped-call]
        return done


def _engine_on(driver: sqlite3.Connection) -> Engine:
    engine = create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool, hide_parameters=True)
    # What SQLAlchemy does the first time ends whatever transaction the connection is in.
    engine.connect().close()
    return engine


def _visit(driver: sqlite3.Connection, engine: Engine, work: Work[R]) -> R:
    at_hand = AtHand(driver, engine)
    driver.execute("BEGIN IMMEDIATE")
    try:
        done = _result(work(cast("AsyncConnection", at_hand)))
        driver.commit()
    except BaseException:
        driver.rollback()
        raise
    finally:
        # After the end of the transaction, for SQLAlchemy would undo it.
        at_hand.close()
    return done


def _result(work: Coroutine[Any, Any, R]) -> R:
    try:
        work.send(None)
    except StopIteration as finished:
        done: R = finished.value
        return done
    work.close()
    raise RuntimeError("a transaction's work may await nothing but its connection")
