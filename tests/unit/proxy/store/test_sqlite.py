"""A database that is a file: its permissions, its lock, its one connection."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from proxy.settings import Database as DatabaseSettings
from proxy.store.address import file_of
from proxy.store.database import Database, StorageError, open_database
from proxy.store.ledger import Ledger, Standing
from proxy.store.sqlite import StorageLockedError, claimed
from proxy.store.writer import Writer

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


async def test_a_file_that_others_could_read_is_closed_to_them(on_sqlite: DatabaseSettings) -> None:
    file_of(on_sqlite).chmod(0o644)
    async with open_database(on_sqlite):
        assert await asyncio.to_thread(mode, file_of(on_sqlite)) == 0o600


async def test_a_second_opening_is_refused_and_told_by_whom(on_sqlite: DatabaseSettings) -> None:
    async with open_database(on_sqlite):
        with pytest.raises(StorageLockedError, match=f"process {os.getpid()}") as refused:
            async with open_database(on_sqlite):
                pass
    assert (refused.value.pid, refused.value.path) == (os.getpid(), file_of(on_sqlite))
    async with open_database(on_sqlite) as again, again.read() as connection:
        assert (await connection.execute(COUNT)).scalar_one() == 0


def test_a_killed_process_leaves_no_lock(on_sqlite: DatabaseSettings) -> None:
    path = file_of(on_sqlite)
    code = "import sys, time, pathlib; from proxy.store.sqlite import claimed\n"
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


async def test_a_read_is_not_overtaken_by_the_next_write(on_sqlite: DatabaseSettings) -> None:
    order: list[str] = []

    async def write(database: Database) -> None:
        for number in range(3):
            async with database.write() as connection:
                await connection.execute(BOOT, {"id": str(number)})
                order.append("write")

    async def read(database: Database) -> None:
        async with database.read():
            order.append("read")

    async with open_database(on_sqlite) as database:
        await asyncio.gather(write(database), read(database))
    assert order == ["write", "read", "write", "write"]


async def test_f6_a_foreign_lock_stops_writes_and_no_reads(on_sqlite: DatabaseSettings) -> None:
    async with open_database(on_sqlite) as database:
        foreign = sqlite3.connect(file_of(on_sqlite), isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            async with database.write() as connection:
                await connection.execute(BOOT, {"id": "a"})
        async with database.read() as connection:
            assert (await connection.execute(COUNT)).scalar_one() == 0
        foreign.close()
        async with database.write() as connection:
            await connection.execute(BOOT, {"id": "a"})


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


async def test_f6_while_the_file_is_locked_reservations_fail_and_settlements_wait(
    sqlite_store: Any, make: Any, on_sqlite: DatabaseSettings
) -> None:
    await sqlite_store.ledger.reserve(make.entry("req_a", 100))
    foreign = sqlite3.connect(file_of(on_sqlite), isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    settling = sqlite_store.ledger.settle(make.settled("req_a"))
    with pytest.raises(StorageError, match="locked"):
        await sqlite_store.ledger.reserve(make.entry("req_b"))
    assert not settling.done()
    assert (await sqlite_store.ledger.standing("key_a", make.period)).reserved_tokens == 100
    foreign.close()
    await settling
    assert await sqlite_store.ledger.standing("key_a", make.period) == Standing(15, 0, 1, 0)
    assert await sqlite_store.ledger.check() == []


async def test_what_was_acknowledged_is_there_after_opening_again(
    on_sqlite: DatabaseSettings, sqlite_store: Any, make: Any
) -> None:
    await sqlite_store.ledger.reserve(make.entry("req_a", 100))
    with sqlite3.connect(file_of(on_sqlite)) as copied:
        copy = file_of(on_sqlite).with_name("copy.db")
        with sqlite3.connect(copy) as target:
            copied.backup(target)
    again = DatabaseSettings(url=f"sqlite+aiosqlite:///{copy}")
    async with open_database(again) as database, Writer(database, sqlite_store.writer._clock) as writer:
        ledger = Ledger(writer, "boot_2")
        assert [entry.request_id for entry in await ledger.open_rows()] == ["req_a"]
        assert await ledger.standing("key_a", make.period) == Standing(0, 100, 0, 1)
