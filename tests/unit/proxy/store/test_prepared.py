"""One statement, the same on both databases, whatever runs it."""

from typing import Any

import pytest
from sqlalchemy import bindparam, insert, select, text, update

from proxy.settings import Database as DatabaseSettings
from proxy.store.database import Database, StorageRejectedError, open_database
from proxy.store.prepared import Prepared
from proxy.store.tables import boot
from tests.unit.proxy.store.conftest import NOW

INSERT = Prepared(insert(boot), columns=("id", "pid", "started"))
FIND = Prepared(
    select(boot.c.id, boot.c.pid).where(
        boot.c.id.in_(bindparam("ids", expanding=True)), boot.c.pid < bindparam("below")
    )
)
# `pid` 1 is the statement's own.
RENAME = Prepared(update(boot).where(boot.c.id == bindparam("of"), boot.c.pid == 1).values(place=bindparam("to")))
STARTED = select(boot.c.started, boot.c.place).order_by(boot.c.id)


def rows(*numbers: int) -> list[dict[str, object]]:
    return [{"id": f"boot_{number}", "pid": number, "started": NOW} for number in numbers]


async def put(database: Database, *numbers: int) -> None:
    async def work(connection: Any) -> None:
        await INSERT.on_each(connection, rows(*numbers))

    await database.transact(work)


async def found(database: Database, ids: list[str]) -> list[tuple[Any, ...]]:
    async def work(connection: Any) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, await FIND.on(connection, {"ids": ids, "below": 3})))

    return await database.transact(work)


@pytest.mark.parametrize(
    ("ids", "names"),
    [([], []), (["boot_1"], ["boot_1"]), (["boot_2", "boot_1", "boot_3", "boot_9"], ["boot_1", "boot_2"])],
)
async def test_a_list_may_have_any_length(settings: DatabaseSettings, ids: list[str], names: list[str]) -> None:
    async with open_database(settings) as database:
        await put(database, 1, 2, 3)
        assert [name for name, _ in await found(database, ids)] == names


async def test_what_is_written_so_is_what_sqlalchemy_reads(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        await put(database, 1)
        async with database.read() as connection:
            assert (await connection.execute(STARTED)).one() == (NOW, None)


async def test_a_statements_own_values_are_its_own(settings: DatabaseSettings) -> None:
    async def work(connection: Any) -> None:
        await RENAME.on_each(connection, [{"of": "boot_1", "to": "here"}, {"of": "boot_2", "to": "there"}])

    async with open_database(settings) as database:
        await put(database, 1, 2)
        await database.transact(work)
        async with database.read() as connection:
            assert [place for _, place in await connection.execute(STARTED)] == ["here", None]


async def test_both_ways_are_in_one_transaction(settings: DatabaseSettings) -> None:
    async def work(connection: Any) -> None:
        await INSERT.on_each(connection, rows(1))
        assert (await connection.execute(select(boot.c.id))).scalars().all() == ["boot_1"]
        await connection.execute(insert(boot), rows(2))
        assert sorted(await FIND.on(connection, {"ids": ["boot_1", "boot_2"], "below": 9})) == [
            ("boot_1", 1),
            ("boot_2", 2),
        ]
        raise LookupError

    async with open_database(settings) as database:
        with pytest.raises(LookupError):
            await database.transact(work)
        assert await found(database, ["boot_1", "boot_2"]) == []


async def test_a4_a_row_that_is_refused_is_the_statements_fault_and_is_not_quoted(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        await put(database, 1)
        with pytest.raises(StorageRejectedError) as raised:
            await put(database, 2, 1)
        assert "boot_1" not in str(raised.value)
        assert await found(database, ["boot_1", "boot_2"]) == [("boot_1", 1)]


async def test_columns_that_would_have_to_be_converted_are_refused(on_sqlite: DatabaseSettings) -> None:
    async def work(connection: Any) -> None:
        await Prepared(select(boot.c.started)).on(connection, {})

    async with open_database(on_sqlite) as database:
        with pytest.raises(TypeError, match=r"boot\.started"):
            await database.transact(work)


async def test_a_connection_that_was_thrown_away_is_replaced(on_sqlite: DatabaseSettings) -> None:
    async with open_database(on_sqlite) as database:
        await put(database, 1)
        async with database.read() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.invalidate()
        await put(database, 2)
        assert len(await found(database, ["boot_1", "boot_2"])) == 2
