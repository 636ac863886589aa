"""`tollhouse db backup`: what it says, and where it cannot help."""

import json
from pathlib import Path

import pytest

from proxy.cli import root
from proxy.settings import Database
from proxy.store import migrate

CONFIG = "upstreams: [{name: local, socket: run/s.sock}]\n"


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text(CONFIG)
    return tmp_path


def test_a_backup_is_told_with_its_size(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (house / "data").mkdir(mode=0o700)
    migrate.upgrade(Database())
    assert root.run(["--json", "db", "backup", "copy.db"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "database": "data/tollhouse.db",
        "file": "copy.db",
        "size_bytes": (house / "copy.db").stat().st_size,
    }


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("there.db", "there.db is there already; name another file."),
        ("away/copy.db", "Cannot make away/copy.db: No such file or directory."),
    ],
)
def test_what_is_wrong_with_its_file_is_not_the_database_s_fault(
    house: Path, capsys: pytest.CaptureFixture[str], file: str, said: str
) -> None:
    (house / "data").mkdir(mode=0o700)
    migrate.upgrade(Database())
    (house / "there.db").touch()
    assert root.run(["db", "backup", file]) == 1
    assert capsys.readouterr().err == f"Error: {said}\n"


def test_a_database_without_tables_is_nothing_to_keep(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (house / "data").mkdir(mode=0o700)
    (house / "data/tollhouse.db").touch()
    assert root.run(["db", "backup", "copy.db"]) == 1
    assert capsys.readouterr().err == "Error: data/tollhouse.db has no tables yet: there is nothing to back up.\n"
    assert not (house / "copy.db").exists()


def test_a_server_s_database_is_not_a_file(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (house / "conf/proxy.yaml").write_text(f"{CONFIG}database: {{url: postgresql+asyncpg://h/d}}\n")
    assert root.run(["db", "backup", "copy.db"]) == 1
    said = capsys.readouterr().err
    assert "postgresql://h/d is a server's." in said
    assert "pg_dump" in said
