from pathlib import Path

import pytest

from proxy.settings import Database as DatabaseSettings
from proxy.store.address import described, file_of, is_file, url_of
from proxy.store.database import StorageError

SERVER = "postgresql+asyncpg://me:hunter2@db.example:5433/toll?ssl=require&password=hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///a.db?password=hunter2",
        "sqlite:///a.db",
        "postgresql://me:hunter2@host/db",
        "postgresql+asyncpg://me:hunter2@host",
        "postgresql+asyncpg://me:x@y:hunter2/db",
        "mysql://me:hunter2@host/db",
        "what",
    ],
)
def test_a_url_of_neither_form_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StorageError, match=r"sqlite\+aiosqlite:///path/to/file` or `postgresql\+asyncpg") as refused:
        url_of(DatabaseSettings(url=url))
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_relative_url_is_relative_to_the_working_directory() -> None:
    assert file_of(DatabaseSettings()) == Path("data/tollhouse.db")
    assert described(DatabaseSettings()) == "data/tollhouse.db"


def test_a_server_is_told_without_password_and_options() -> None:
    assert described(DatabaseSettings(url=SERVER)) == "postgresql://db.example:5433/toll"
    assert not is_file(DatabaseSettings(url=SERVER))
    with pytest.raises(StorageError, match=r"postgresql://db\.example:5433/toll is no file"):
        file_of(DatabaseSettings(url=SERVER))
