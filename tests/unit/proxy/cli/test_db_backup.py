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
    assert root.run(["db", "backup", "copy.db"]) == 1
    assert "there already" in capsys.readouterr().err


def test_a_server_s_database_is_not_a_file(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (house / "conf/proxy.yaml").write_text(f"{CONFIG}database: {{url: postgresql+asyncpg://h/d}}\n")
    assert root.run(["db", "backup", "copy.db"]) == 1
    said = capsys.readouterr().err
    assert "postgresql://h/d is a server's." in said
    assert "pg_dump" in said
