import sqlite3
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

from proxy.settings import Database as DatabaseSettings
from proxy.store import migrate
from proxy.store.tables import metadata


def migrated(folder: Path) -> Path:
    migrate.upgrade(DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/migrated.db"))
    return folder / "migrated.db"


def schema(path: Path) -> dict[str, list[str]]:
    """The words that made each table and index, without the spaces and line breaks between them.

    A column that was added later stands behind the constraints, so the parts are in no order.
    """
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT name, sql FROM sqlite_master WHERE name != 'alembic_version' AND sql != ''")
        return {name: sorted(parts("".join(sql.split()))) for name, sql in rows}


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


def test_the_migrations_end_where_the_tables_are(tmp_path: Path) -> None:
    engine = create_engine(URL.create("sqlite", database=str(migrated(tmp_path))), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_the_migrations_and_the_tables_say_the_same_to_the_word(tmp_path: Path) -> None:
    """Alembic's comparison sees no check constraints and no conditions of indexes."""
    engine = create_engine(URL.create("sqlite", database=str(tmp_path / "made.db")), poolclass=NullPool)
    metadata.create_all(engine)
    assert schema(migrated(tmp_path)) == schema(tmp_path / "made.db")


def test_the_versions_are_one_line() -> None:
    script = ScriptDirectory.from_config(migrate._config())
    assert len(script.get_heads()) == len(script.get_bases()) == 1
    assert script.get_current_head() == migrate.head()
