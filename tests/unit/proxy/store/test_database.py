"""Transactions, alike on both databases."""

import pytest
from sqlalchemy import insert, text

from proxy.settings import Database as DatabaseSettings
from proxy.store.database import Database, StorageRejectedError, open_database
from proxy.store.tables import boot
from tests.unit.proxy.store.conftest import NOW

BOOT = insert(boot).values(pid=1, started=NOW)
COUNT = text("SELECT count(*) FROM boot")


async def test_a_transaction_that_raises_leaves_nothing(settings: DatabaseSettings) -> None:
    async def fail(database: Database) -> None:
        async with database.write() as connection:
            await connection.execute(BOOT, {"id": "a"})
            raise LookupError

    async with open_database(settings) as database:
        with pytest.raises(LookupError):
            await fail(database)
        async with database.read() as connection:
            assert (await connection.execute(COUNT)).scalar_one() == 0


async def test_what_is_written_is_there_after_opening_again(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database, database.write() as connection:
        await connection.execute(BOOT, {"id": "a"})
    async with open_database(settings) as database, database.read() as connection:
        assert (await connection.execute(COUNT)).scalar_one() == 1


async def test_a4_a_failed_statement_does_not_tell_its_values(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        with pytest.raises(StorageRejectedError) as raised:
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO boot (id) VALUES (:id)"), {"id": "canary"})
    assert "canary" not in f"{raised.value} {raised.value.__cause__}"


async def test_a_broken_constraint_is_the_statements_fault(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        for _ in range(2):
            with pytest.raises(StorageRejectedError, match=r"(?i)not.null"):
                async with database.write() as connection:
                    await connection.execute(text("INSERT INTO boot (id) VALUES ('a')"))
