import asyncio
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import migrations
from proxy.settings import Database as DatabaseSettings
from proxy.store import migrate
from proxy.store.address import file_of
from proxy.store.database import StorageError, StorageLockedError, StorageRejectedError, open_database
from proxy.store.failure import SchemaError
from proxy.store.sqlite import claimed
from tests.fakes.postgres import Postgres


def at(path: Path) -> DatabaseSettings:
    return DatabaseSettings(url=f"sqlite+aiosqlite:///{path}", busy_timeout_s=0.05)


def execute(settings: DatabaseSettings, statement: str) -> None:
    """On either database, in a transaction of its own."""

    async def executed() -> None:
        async with open_database(settings) as database, database.write() as connection:
            await connection.execute(text(statement))

    asyncio.run(executed())


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[DatabaseSettings]:
    """A Postgres without our tables."""
    with postgres.database() as name:
        yield DatabaseSettings(url=postgres.url(name))


@pytest.mark.parametrize("name", ["house.db", "a house.db", "100%.db", "a#b.db"])
def test_a_database_is_made_and_brought_to_the_head(tmp_path: Path, name: str) -> None:
    settings = at(tmp_path / "data" / name)
    assert migrate.current(settings) is None
    migrate.upgrade(settings)
    assert migrate.current(settings) == migrate.head()
    migrate.require_head(settings)
    assert [path.name for path in (tmp_path / "data").glob("*.db")] == [name]
    assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600


def test_a_server_s_database_is_brought_to_the_head(empty: DatabaseSettings) -> None:
    assert migrate.current(empty) is None
    with pytest.raises(SchemaError, match=r"has no tables yet: `tollhouse up` makes them, or: tollhouse db upgrade"):
        migrate.require_head(empty)
    migrate.upgrade(empty)
    assert migrate.current(empty) == migrate.head()
    migrate.require_head(empty)


def test_two_upgrades_of_one_server_at_once_are_one(empty: DatabaseSettings) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(migrate.upgrade, [empty] * 3))
    assert migrate.current(empty) == migrate.head()


def test_an_upgrade_that_is_not_needed_changes_nothing(settings: DatabaseSettings) -> None:
    execute(settings, "INSERT INTO account (id, name, created) VALUES ('a', 'a', '2026-11-25 00:00:00.000000')")
    migrate.upgrade(settings)
    with pytest.raises(StorageRejectedError):
        execute(settings, "INSERT INTO account (id, name, created) VALUES ('a', 'a', '2026-11-25 00:00:00.000000')")


def test_asking_for_the_revision_makes_no_file(tmp_path: Path) -> None:
    assert migrate.current(at(tmp_path / "data/house.db")) is None
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_behind(tmp_path: Path) -> None:
    (tmp_path / "house.db").touch()
    with pytest.raises(SchemaError, match=r"has no tables yet: `tollhouse up` makes them, or: tollhouse db upgrade"):
        migrate.require_head(at(tmp_path / "house.db"))


@pytest.mark.parametrize("use", [migrate.upgrade, migrate.require_head])
def test_a_database_of_a_newer_version_is_left_alone(settings: DatabaseSettings, use: Any) -> None:
    execute(settings, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="9999, which this version does not know"):
        use(settings)
    assert migrate.current(settings) == "9999"
    execute(settings, f"UPDATE alembic_version SET version_num = '{migrate.head()}'")  # noqa: S608  a number of ours


def test_no_upgrade_under_a_running_server(on_sqlite: DatabaseSettings) -> None:
    settings = on_sqlite
    with claimed(file_of(settings)):
        with pytest.raises(StorageLockedError):
            migrate.upgrade(settings)
        assert migrate.current(settings) == migrate.head()


def test_an_upgrade_that_fails_leaves_nothing(tmp_path: Path) -> None:
    settings = at(tmp_path / "house.db")
    with sqlite3.connect(file_of(settings)) as database:
        # Made last, so everything else is there before it fails. A table would be another program's.
        database.execute("CREATE VIEW boot AS SELECT 1")
    with pytest.raises(StorageError, match="boot already exists"):
        migrate.upgrade(settings)
    with sqlite3.connect(file_of(settings)) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("boot",)]
    assert migrate.current(settings) is None


def test_an_upgrade_of_a_server_that_fails_leaves_nothing(empty: DatabaseSettings, postgres: Postgres) -> None:
    execute(empty, "CREATE TABLE boot (id INTEGER)")
    with pytest.raises(StorageRejectedError, match="already exists"):
        migrate.upgrade(empty)
    execute(empty, "DROP TABLE boot")
    migrate.upgrade(empty)


def test_a_file_that_is_no_database_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "house.db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StorageError, match="not a database"):
        migrate.current(at(tmp_path / "house.db"))


def test_the_steps_are_found_in_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "__file__", "/opt/100%/migrations/__init__.py")
    assert migrate._config().get_main_option("script_location") == "/opt/100%/migrations"
