import asyncio
import sqlite3
import threading
from typing import Any

import pytest
from sqlalchemy import text

from proxy.settings import Database as DatabaseSettings
from proxy.store.address import file_of
from proxy.store.database import Database, StorageRejectedError, open_database

BOOT = text("INSERT INTO boot (id, pid, started) VALUES (:id, 1, '2026-11-25 12:00:00')")
COUNT = text("SELECT count(*) FROM boot")


async def boots(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(COUNT)).scalar_one())


async def test_what_a_transaction_did_is_there_after_it(settings: DatabaseSettings) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(BOOT, [{"id": "a"}, {"id": "b"}])
        assert (await connection.execute(COUNT)).scalar_one() == 2

    async with open_database(settings) as database:
        await database.transact(work)
        assert await boots(database) == 2


async def test_a_transaction_that_raises_did_nothing(settings: DatabaseSettings) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(BOOT, {"id": "a"})
        raise RuntimeError("no")

    async with open_database(settings) as database:
        with pytest.raises(RuntimeError, match="no"):
            await database.transact(work)
        assert await boots(database) == 0


async def test_a_broken_constraint_is_told_and_undone(settings: DatabaseSettings) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(BOOT, {"id": "a"})
        await connection.execute(text("INSERT INTO boot (id) VALUES (:id)"), {"id": "canary"})

    async with open_database(settings) as database:
        with pytest.raises(StorageRejectedError) as raised:
            await database.transact(work)
        assert "canary" not in f"{raised.value} {raised.value.__cause__}"
        assert await boots(database) == 0


async def test_on_sqlite_it_is_one_visit_to_another_thread(on_sqlite: DatabaseSettings) -> None:
    threads: list[str] = []

    async def work(connection: Any) -> None:
        for name in ("a", "b"):
            await connection.execute(BOOT, {"id": name})
            threads.append(threading.current_thread().name)

    async with open_database(on_sqlite) as database:
        await database.transact(work)
    assert len(set(threads)) == 1
    assert threading.current_thread().name not in threads


async def test_f6_on_sqlite_nobody_writes_between_what_a_transaction_reads_and_what_it_writes(
    on_sqlite: DatabaseSettings,
) -> None:
    """Not even a foreign program: a transaction that had read by then would have to be refused."""

    async def work(connection: Any) -> None:
        assert (await connection.execute(COUNT)).scalar_one() == 0
        foreign = sqlite3.connect(file_of(on_sqlite), timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            foreign.execute("UPDATE boot SET pid = 2")
        foreign.close()
        await connection.execute(BOOT, {"id": "a"})

    async with open_database(on_sqlite) as database:
        await database.transact(work)
        assert await boots(database) == 1


async def test_on_sqlite_work_that_waits_for_something_else_fails(on_sqlite: DatabaseSettings) -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work(connection: Any) -> None:
        await connection.execute(BOOT, {"id": "a"})
        await never

    async with open_database(on_sqlite) as database:
        with pytest.raises(RuntimeError, match="await"):
            await database.transact(work)
        assert await boots(database) == 0


async def test_a_cancelled_transaction_of_sqlites_ends_all_the_same_and_costs_no_connection(
    on_sqlite: DatabaseSettings,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def work(connection: Any) -> None:
        begun.set()
        go_on.wait(10)
        await connection.execute(BOOT, {"id": "a"})

    async with open_database(on_sqlite) as database:
        transaction = asyncio.create_task(database.transact(work))
        await asyncio.to_thread(begun.wait, 10)
        transaction.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await transaction
        assert await boots(database) == 1
