"""A database that is a server: what it says when it cannot be used, and how it comes back."""

import asyncio
import importlib.util
from typing import Any

import pytest
from sqlalchemy import text

from proxy.settings import Database as DatabaseSettings
from proxy.store import migrate
from proxy.store.database import Database, StorageError, StorageRejectedError, open_database
from tests.fakes.postgres import Postgres
from tests.fakes.waiting import until

NOWHERE = "postgresql+asyncpg://me:hunter2@/toll?host=/nonexistent"


async def refused(settings: DatabaseSettings) -> StorageError:
    with pytest.raises(StorageError) as raised:
        async with open_database(settings):
            pass
    return raised.value


async def test_a_server_that_is_not_there_is_a_storage_error_without_its_password() -> None:
    error = await refused(DatabaseSettings(url=NOWHERE))
    cause: BaseException | None = error
    while cause is not None:
        assert "hunter2" not in f"{cause}{cause!r}"
        cause = cause.__cause__ or cause.__context__


async def test_a_database_or_user_that_is_not_there_is_a_storage_error(postgres: Postgres) -> None:
    assert "does not exist" in str(await refused(DatabaseSettings(url=postgres.url("nowhere"))))
    stranger = postgres.url("postgres").replace("postgres@", "stranger:hunter2@")
    error = str(await refused(DatabaseSettings(url=stranger)))
    assert "stranger" in error
    assert "hunter2" not in error


async def test_without_its_driver_it_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "asyncpg" else found(name))
    settings = DatabaseSettings(url=NOWHERE)
    assert "tollhouse[postgres]" in str(await refused(settings))
    with pytest.raises(StorageError, match=r"tollhouse\[postgres\]"):
        await asyncio.to_thread(migrate.current, settings)


async def test_a_statement_has_its_time(on_postgres: DatabaseSettings) -> None:
    async def sleep(database: Database) -> None:
        async with database.read() as connection:
            # What is set is the time of every statement, of SQLAlchemy's own too: it is made short for this one alone.
            await connection.execute(text("SET LOCAL statement_timeout = 1"))
            await connection.execute(text("SELECT pg_sleep(10)"))

    settings = DatabaseSettings(url=on_postgres.url, statement_timeout_s=90.5)
    async with open_database(settings) as database:
        async with database.read() as connection:
            assert (await connection.execute(text("SHOW statement_timeout"))).scalar_one() == "90500ms"
        with pytest.raises(StorageError, match="statement timeout"):
            await sleep(database)


async def test_a_lock_has_its_time(on_postgres: DatabaseSettings) -> None:
    quick = DatabaseSettings(url=on_postgres.url, busy_timeout_s=0.2)
    async with open_database(quick) as database, database.write() as holder:
        await holder.execute(text("LOCK TABLE boot"))
        with pytest.raises(StorageError, match="lock timeout") as raised:
            async with database.read() as connection:
                await connection.execute(text("SELECT * FROM boot"))
        assert not isinstance(raised.value, StorageRejectedError)


async def test_a_transaction_that_idles_lets_go(on_postgres: DatabaseSettings, postgres: Postgres) -> None:
    limit = "idle_in_transaction_session_timeout"

    async def idle(database: Database) -> None:
        async with database.write() as connection:
            await connection.execute(text("LOCK TABLE boot"))
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            left = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"  # noqa: S608  a number
            # As above, for this transaction alone.
            await connection.execute(text(f"SET LOCAL {limit} = 1"))
            await asyncio.to_thread(until, lambda: not postgres.sql(left))

    settings = DatabaseSettings(url=on_postgres.url, statement_timeout_s=90.5)
    async with open_database(settings) as database:
        async with database.read() as connection:
            assert (await connection.execute(text(f"SHOW {limit}"))).scalar_one() == "90500ms"
        with pytest.raises(StorageError):
            await idle(database)


async def test_a_used_up_pool_is_a_storage_error(on_postgres: DatabaseSettings) -> None:
    small = DatabaseSettings(url=on_postgres.url, pool_size=2, busy_timeout_s=0.05)
    async with open_database(small) as database, database.read(), database.read():
        with pytest.raises(StorageError, match="QueuePool limit"):
            async with database.read():
                pass


@pytest.mark.parametrize("value", ["canary" * 10, 10**30])
async def test_a_value_that_does_not_fit_is_not_told(on_postgres: DatabaseSettings, value: Any) -> None:
    column = "id" if isinstance(value, str) else "pid"
    statement = text(f"INSERT INTO boot ({column}) VALUES (:value)")  # noqa: S608  names of ours
    async with open_database(on_postgres) as database:
        with pytest.raises(StorageRejectedError, match="a value does not fit its column") as raised:
            async with database.write() as connection:
                await connection.execute(statement, {"value": value})
        assert str(value) not in str(raised.value)


async def test_a_row_that_is_refused_is_not_quoted(on_postgres: DatabaseSettings) -> None:
    async with open_database(on_postgres) as database:
        with pytest.raises(StorageRejectedError, match="null value in column") as raised:
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO boot (id) VALUES (:id)"), {"id": "canary"})
        assert "canary" not in f"{raised.value} {raised.value.__cause__}"


async def test_f5_connections_that_the_server_cut_are_made_anew(
    postgres: Postgres, on_postgres: DatabaseSettings
) -> None:
    async with open_database(on_postgres) as database:
        pid = text("SELECT pg_backend_pid()")
        async with database.read() as one, database.read() as two:
            pids = [(await connection.execute(pid)).scalar_one() for connection in (one, two)]
        for number in pids:
            # It waits until that one has ended.
            cut = f"SELECT pg_terminate_backend({number}, 10000)"
            assert await asyncio.to_thread(postgres.sql, cut) == [["t"]]
        # The loop hears their last words, and then of their ends.
        for _ in range(10):
            await asyncio.sleep(0)
        for _ in range(3):
            async with database.read() as connection:
                assert (await connection.execute(pid)).scalar_one() not in pids
