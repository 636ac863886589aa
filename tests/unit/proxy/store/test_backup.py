"""A copy of a database that is in use: whole, of one moment, checked, and nobody else's."""

import asyncio
import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest
from sqlalchemy import text

from proxy.settings import Database as DatabaseSettings
from proxy.store import migrate
from proxy.store.backup import BackupFileError, back_up
from proxy.store.database import open_database
from proxy.store.failure import StorageError

BOOT = text("INSERT INTO boot (id, pid, started) VALUES (:id, 1, '2026-11-25 00:00:00')")


def boots(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT id FROM boot ORDER BY id")]


async def test_a_copy_made_beside_a_writer_has_what_was_committed_and_no_more(
    on_sqlite: DatabaseSettings, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    async with open_database(on_sqlite) as database:
        async with database.write() as connection:
            await connection.execute(BOOT, {"id": "before"})
        async with database.write() as connection:
            await connection.execute(BOOT, {"id": "uncommitted"})
            size = await asyncio.to_thread(back_up, on_sqlite, copy)
        async with database.write() as connection:
            await connection.execute(BOOT, {"id": "after"})
    assert await asyncio.to_thread(boots, copy) == ["before"]
    found = copy.stat()
    assert (size, stat.S_IMODE(found.st_mode)) == (found.st_size, 0o600)
    assert not (tmp_path / "copy.db-wal").exists()


async def test_a_copy_is_a_database_to_go_on_with(on_sqlite: DatabaseSettings, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    await asyncio.to_thread(back_up, on_sqlite, copy)
    restored = DatabaseSettings(url=f"sqlite+aiosqlite:///{copy}")
    found, head = await asyncio.to_thread(lambda: (migrate.current(restored), migrate.head()))
    assert found == head
    async with open_database(restored) as database, database.write() as connection:
        await connection.execute(BOOT, {"id": "next"})


def test_nothing_is_written_over(on_sqlite: DatabaseSettings, tmp_path: Path) -> None:
    there = tmp_path / "there.db"
    there.write_text("mine")
    with pytest.raises(BackupFileError, match="there already"):
        back_up(on_sqlite, there)
    assert there.read_text() == "mine"


def test_half_a_copy_is_none(tmp_path: Path) -> None:
    broken, copy = tmp_path / "broken.db", tmp_path / "copy.db"
    broken.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        back_up(DatabaseSettings(url=f"sqlite+aiosqlite:///{broken}"), copy)
    assert not copy.exists()


@pytest.mark.parametrize(("url", "said"), [("/nowhere/x.db", "no database at"), ("", "database.url")])
def test_where_there_is_no_database_it_says_so(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=said):
        back_up(DatabaseSettings(url=f"sqlite+aiosqlite://{url and '/' + url}"), tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(on_sqlite: DatabaseSettings, tmp_path: Path) -> None:
    with pytest.raises(BackupFileError, match="No such file or directory"):
        back_up(on_sqlite, tmp_path / "away/copy.db")
