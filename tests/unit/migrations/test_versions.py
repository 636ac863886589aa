import asyncio
import sqlite3
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.pool import NullPool

from proxy.settings import Database as DatabaseSettings
from proxy.store import migrate
from proxy.store.database import open_database
from proxy.store.tables import metadata
from tests.fakes.postgres import Postgres


def migrated(folder: Path) -> Path:
    migrate.upgrade(DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/migrated.db"))
    return folder / "migrated.db"


def schema(path: Path) -> dict[str, list[str]]:
    """The words that made each table and index, without the spaces and line breaks between them.

    A column that was added later stands behind the constraints, so the parts are in no order. A table that was made
    anew has its name in quotes.
    """
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT name, sql FROM sqlite_master WHERE name != 'alembic_version' AND sql != ''")
        return {name: sorted(parts("".join(sql.replace('"', "").split()))) for name, sql in rows}


def parts(sql: str) -> list[str]:
    """What is before the outer brackets, and what is between the commas in them."""
    head, _, body = sql.removesuffix(")").partition("(")
    found, depth = [head, ""], 0
    for character in body:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    found: list[object] = compare_metadata(context, metadata)
    return found


def catalog(server: Postgres, database: str) -> list[list[str]]:
    columns = """
        SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
    """
    constraints = """
        SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
    """
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    rows = [row for asked in (columns, constraints, indexes) for row in server.sql(asked, database)]
    return sorted(row for row in rows if not any("alembic_version" in value for value in row))


def test_the_migrations_end_where_the_tables_are(tmp_path: Path) -> None:
    engine = create_engine(URL.create("sqlite", database=str(migrated(tmp_path))), poolclass=NullPool)
    with engine.connect() as connection:
        assert differences(connection) == []


def test_the_migrations_and_the_tables_say_the_same_to_the_word(tmp_path: Path) -> None:
    """Alembic's comparison sees no check constraints and no conditions of indexes."""
    engine = create_engine(URL.create("sqlite", database=str(tmp_path / "made.db")), poolclass=NullPool)
    metadata.create_all(engine)
    assert schema(migrated(tmp_path)) == schema(tmp_path / "made.db")


async def test_the_migrations_end_where_the_tables_are_on_postgres_too(on_postgres: DatabaseSettings) -> None:
    async with open_database(on_postgres) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_migrations_and_the_tables_make_the_same_on_postgres(
    on_postgres: DatabaseSettings, postgres: Postgres
) -> None:
    """Every column, constraint and index, in the server's own words."""
    with postgres.database() as made:
        async with open_database(DatabaseSettings(url=postgres.url(made))) as database, database.write() as connection:
            await connection.run_sync(metadata.create_all)
        wanted = await asyncio.to_thread(catalog, postgres, made)
    assert await asyncio.to_thread(catalog, postgres, postgres.name_in(on_postgres.url)) == wanted


def test_the_versions_are_one_line() -> None:
    script = ScriptDirectory.from_config(migrate._config())
    assert len(script.get_heads()) == len(script.get_bases()) == 1
    assert script.get_current_head() == migrate.head()


def test_a_table_that_is_made_anew_keeps_its_rows(tmp_path: Path) -> None:
    engine = create_engine(URL.create("sqlite", database=str(tmp_path / "old.db")), poolclass=NullPool)
    config = migrate._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
    columns = "request_id, state, key_id, account_id, tier, period, endpoint, model, stream, choices, priority, boot_id"
    amounts = "est_tokens, prompt_tokens, cached_tokens, completion_tokens"
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute(
            f"INSERT INTO ledger ({columns}, {amounts}, created) VALUES "  # noqa: S608  our own column names
            "('req_1', 'void', 'k', 'a', 't', '2026-11', '/v1', 'm', 0, 1, 0, 'b', 30, 0, 0, 0, '2026-11-25 12:00:00')"
        )
    migrate.upgrade(DatabaseSettings(url=f"sqlite+aiosqlite:///{tmp_path}/old.db"))
    with sqlite3.connect(tmp_path / "old.db") as database:
        assert database.execute("SELECT request_id, est_tokens, rule FROM ledger").fetchall() == [("req_1", 30, None)]


def test_a_dump_of_an_older_version_is_restored_and_brought_up_to_date(postgres: Postgres) -> None:
    """Nothing may be left of the newer one that was there: its tables are made anew."""
    config = migrate._config()

    def older(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")

    with postgres.database() as name:
        settings = DatabaseSettings(url=postgres.url(name))
        migrate._on_postgres(settings, older)
        dump = postgres.dump(name)
        migrate.upgrade(settings)
        newer = catalog(postgres, name)
        postgres.restore(name, dump)
        assert migrate.current(settings) == "0004"
        migrate.upgrade(settings)
        assert catalog(postgres, name) == newer
