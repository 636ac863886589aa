import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, text

from proxy.settings import Database as DatabaseSettings
from proxy.store.database import (
    Database,
    StorageError,
    StorageLockedError,
    StorageRejectedError,
    claimed,
    file_of,
    open_database,
    translated,
)

BOOT = text("INSERT INTO boot (id, pid, started) VALUES (:id, 1, '2026-11-25 00:00:00')")
COUNT = text("SELECT count(*) FROM boot")


def at(path: Path, **options: Any) -> DatabaseSettings:
    return DatabaseSettings(url=f"sqlite+aiosqlite:///{path}", busy_timeout_s=0.05, **options)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_file_and_folder_are_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "data/house.db"
    async with open_database(at(path)) as database:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE something (id INTEGER)"))
        names = {path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}.lock"}
        modes = await asyncio.to_thread(lambda: {name: mode(path.parent / name) for name in names})
    assert modes == dict.fromkeys(names, 0o600)
    assert mode(path.parent) == 0o700


async def test_a_file_that_others_could_read_is_closed_to_them(settings: DatabaseSettings) -> None:
    file_of(settings).chmod(0o644)
    async with open_database(settings):
        assert await asyncio.to_thread(mode, file_of(settings)) == 0o600


async def test_a_second_opening_is_refused_and_told_by_whom(settings: DatabaseSettings) -> None:
    async with open_database(settings):
        with pytest.raises(StorageLockedError, match=f"process {os.getpid()}") as refused:
            async with open_database(settings):
                pass
    assert (refused.value.pid, refused.value.path) == (os.getpid(), file_of(settings))
    async with open_database(settings) as again, again.read() as connection:
        assert (await connection.execute(COUNT)).scalar_one() == 0


def test_a_killed_process_leaves_no_lock(settings: DatabaseSettings) -> None:
    path = file_of(settings)
    code = "import sys, time, pathlib; from proxy.store.database import claimed\n"
    code += "with claimed(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StorageLockedError, match=f"process {holder.pid}"), claimed(path):
            pass
        holder.kill()
    lock = path.with_name(path.name + ".lock")
    lock.write_text("9" * 15)
    with claimed(path):
        assert lock.read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("secure_delete", 1), ("busy_timeout", 50)],
)
async def test_the_connection_is_set_up(tmp_path: Path, pragma: str, value: object) -> None:
    async with open_database(at(tmp_path / "house.db")) as database, database.read() as connection:
        assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value


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


async def test_a_read_is_not_overtaken_by_the_next_write(settings: DatabaseSettings) -> None:
    order: list[str] = []

    async def write(database: Database) -> None:
        for number in range(3):
            async with database.write() as connection:
                await connection.execute(BOOT, {"id": str(number)})
                order.append("write")

    async def read(database: Database) -> None:
        async with database.read():
            order.append("read")

    async with open_database(settings) as database:
        await asyncio.gather(write(database), read(database))
    assert order == ["write", "read", "write", "write"]


async def test_a_foreign_lock_stops_writes_and_no_reads(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        foreign = sqlite3.connect(file_of(settings), isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            async with database.write() as connection:
                await connection.execute(BOOT, {"id": "a"})
        async with database.read() as connection:
            assert (await connection.execute(COUNT)).scalar_one() == 0
        foreign.close()
        async with database.write() as connection:
            await connection.execute(BOOT, {"id": "a"})


async def test_a_broken_constraint_is_the_statements_fault(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        for _ in range(2):
            with pytest.raises(StorageRejectedError, match="NOT NULL"):
                async with database.write() as connection:
                    await connection.execute(text("INSERT INTO boot (id) VALUES ('a')"))


async def test_a_file_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "house.db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StorageError, match="not a database"):
        async with open_database(at(tmp_path / "house.db")):
            pass


async def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match=r"Cannot make .*house\.db\.lock"):
        async with open_database(at(tmp_path / "data/house.db")):
            pass


async def test_a_database_that_is_a_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "house.db").mkdir()
    with pytest.raises(StorageError, match="Cannot open"):
        async with open_database(at(tmp_path / "house.db")):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite:///a.db",
        "postgresql://me:hunter2@host/db",
        "what",
    ],
)
def test_a_url_that_is_no_file_of_sqlites_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StorageError) as refused:
        file_of(DatabaseSettings(url=url))
    assert "hunter2" not in str(refused.value)


def test_a_relative_url_is_relative_to_the_working_directory() -> None:
    assert file_of(DatabaseSettings()) == Path("data/tollhouse.db")


def every_subclass(kind: type[BaseException]) -> list[type[BaseException]]:
    return [kind, *(deeper for direct in kind.__subclasses__() for deeper in every_subclass(direct))]


@pytest.mark.parametrize("kind", every_subclass(exc.SQLAlchemyError))
def test_every_foreign_exception_is_translated(kind: type[BaseException]) -> None:
    error = kind.__new__(kind)
    if isinstance(error, exc.StatementError):
        error.orig = sqlite3.Error("why")
    with pytest.raises(StorageError) as raised, translated():
        raise error
    reached = issubclass(kind, exc.DBAPIError)
    at_fault = exc.IntegrityError | exc.DataError | exc.ProgrammingError if reached else exc.StatementError
    assert isinstance(raised.value, StorageRejectedError) == issubclass(kind, at_fault)
    assert raised.value.__cause__ is error


async def test_a4_a_failed_statement_does_not_tell_its_values(settings: DatabaseSettings) -> None:
    async with open_database(settings) as database:
        with pytest.raises(StorageRejectedError) as raised:
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO boot (id) VALUES (:id)"), {"id": "canary"})
    assert "canary" not in f"{raised.value} {raised.value.__cause__}"
