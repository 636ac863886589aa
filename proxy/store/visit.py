"""A whole transaction of SQLite's as one visit to the thread of its connection: BEGIN, all statements, COMMIT.

aiosqlite takes every call of the driver to that thread and back, which for a handful of statements is more than twenty
ways there and back: they would be most of what a small commit takes.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import aiosqlite
from sqlalchemy import Connection, CursorResult, Dialect, Engine, Executable, StaticPool, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection

R = TypeVar("R")
Work = Callable[[AsyncConnection], Coroutine[Any, Any, R]]
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
# Where SQLAlchemy keeps what belongs to one connection of the driver's.
_KEY: Final = "tollhouse_visit"


class AtHand:
    """What a transaction wants of an AsyncConnection, where the driver is at hand: nothing ever suspends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str) -> CursorResult[Any]:
        return self._connection.exec_driver_sql(statement)


async def run(connection: AsyncConnection, work: Work[R], prepare: Callable[[Engine], None]) -> R:
    """Run `work` in a transaction of its own on a connection that has none. It awaits nothing but its connection.

    `prepare` is told the engine that the transaction begins with.
    """
    raw = await connection.get_raw_connection()
    driver = cast("aiosqlite.Connection", raw.driver_connection)
    engine = raw.info.get(_KEY)
    if engine is None:
        engine = raw.info[_KEY] = _engine_on(driver._conn)  # noqa: SLF001  the connection itself has no other name
        prepare(engine)
    # The way that all of the driver's calls go; what is public there are single calls of sqlite3's.
    done: R = await driver._execute(_visit, engine, work)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return done


def _engine_on(driver: sqlite3.Connection) -> Engine:
    return create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool, hide_parameters=True)


def _visit(engine: Engine, work: Work[R]) -> R:
    with engine.begin() as connection:
        return _result(work(cast("AsyncConnection", AtHand(connection))))


def _result(work: Coroutine[Any, Any, R]) -> R:
    try:
        work.send(None)
    except StopIteration as finished:
        done: R = finished.value
        return done
    work.close()
    raise RuntimeError("a transaction's work may await nothing but its connection")
