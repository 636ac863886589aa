"""What holds for every command: one JSON document when asked for, and the exit code that its ending has."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import click
import pytest

from proxy.cli import root
from proxy.cli.grammar import walk

ROOT = Path(__file__).parents[4]
LEAVES: Final = [found.path for found in walk(root.tollhouse, "tollhouse") if not found.commands]
# What is pytest's behind `test`.
OURS: Final = [path for path in LEAVES if path != ("test",)]
# What each command needs behind its name, in an order in which each finds what it needs; `KEY` is a key that is there.
# Those that start servers or run the sidecar's command have tests of their own.
LINES: Final[dict[str, list[str]]] = {
    "db upgrade": [],
    "db current": [],
    "db backup": ["copy.db"],
    "accounts create": ["team"],
    "accounts list": [],
    "accounts show": ["team"],
    "accounts update": ["team", "--metadata", "floor=3"],
    "accounts disable": ["team"],
    "accounts enable": ["team"],
    "keys create": ["--account", "team", "--tier", "free", "--name", "laptop"],
    "keys list": [],
    "keys show": ["KEY"],
    "keys update": ["KEY", "--name", "desk"],
    "keys rotate": ["KEY"],
    "keys revoke": ["KEY"],
    "sign": ["http://127.0.0.1:8000/v1/models", "--key-file", "signing.key"],
    "usage": [],
    "log list": [],
    "log export": ["--output", "log.csv"],
    "audit list": [],
    "ledger check": [],
    "policy check": [],
    "policy schema": [],
    "policy diff": ["policies", "policies"],
    "policy explain": ["--key", "KEY"],
    "policy simulate": ["--policy", "policies"],
    "doctor": ["--only", "ledger"],
    "completion": ["bash"],
}
ELSEWHERE: Final = {"console", "up", "serve", "state", "model fetch", "model list", "test"}
# They need no configuration of a house.
HOMELESS: Final = {"sign", "policy schema", "policy diff", "completion", "test"}
# They look at what is there, and do not ask a server.
ALONE: Final = HOMELESS | {
    "db upgrade",
    "db current",
    "db backup",
    "policy check",
    "doctor",
    "up",
    "serve",
    "model fetch",
    "model list",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house that is configured."""
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text(
        "upstreams: [{name: local, socket: run/s.sock}]\nlisten: {port: 0}\nadmin: {port: 0, socket: run/a.sock}\n"
    )
    (tmp_path / "conf/sidecar.yaml").write_text("model: {id: m, source: m}\nsocket: run/s.sock\n")
    for name in ("run", "data"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(path: tuple[str, ...]) -> str:
    return " ".join(path)


def test_the_lines_below_are_for_every_command() -> None:
    assert {ids(path) for path in LEAVES} == {*LINES, *ELSEWHERE}


def test_every_command_answers_with_one_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, Any] = {}

    def answer(line: list[str]) -> Any:
        assert root.run(["--json", *line]) == 0, line
        return json.loads(capsys.readouterr().out)

    for name, more in LINES.items():
        if name == "sign":
            secret = answer(["keys", "create", "--account", "team", "--tier", "free", "--name", "s", "--signed"])
            (here / "signing.key").write_text(secret["secret"])
        key = answers.get("keys create", {}).get("key_id", "")
        answers[name] = answer([*name.split(), *(key if word == "KEY" else word for word in more)])
    assert all(isinstance(document, dict) for document in answers.values())


@pytest.mark.parametrize("path", OURS, ids=ids)
def test_a_wrong_line_is_a_2_and_a_document(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["--json", *path, "--no-such-option"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


@pytest.mark.parametrize("path", [path for path in OURS if ids(path) not in HOMELESS], ids=ids)
def test_a_wrong_configuration_is_a_3_and_a_document(
    here: Path, path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "conf/proxy.yaml").write_text("upstrems: []\n")
    (here / "conf/sidecar.yaml").write_text("modle: {}\n")
    assert root.run(["--json", *path, *LINES.get(ids(path), [])]) == 3
    # To the doctor it is a finding as others are; the sidecar's own command says it in its own words.
    if path[0] not in {"doctor", "model"}:
        assert json.loads(capsys.readouterr().out)["exit_code"] == 3


@pytest.mark.parametrize("path", [path for path in OURS if ids(path) not in ALONE], ids=ids)
def test_a_server_that_cannot_be_reached_is_a_4_and_a_document(
    here: Path, path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    # Something that is neither there nor not there.
    (here / "run/a.sock").symlink_to("a.sock")
    assert root.run(["--json", *path, *LINES.get(ids(path), [])]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 4


@pytest.mark.parametrize("path", LEAVES, ids=ids)
def test_ctrl_c_is_a_130(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Command, "invoke", interrupted)
    assert root.run(list(path)) == 130


def test_what_failed_is_a_1_and_a_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = here / "other"
    shutil.copytree(here / "policies", other)
    policy = other / "default.yaml"
    policy.write_text(policy.read_text().replace("priority: 10\n", "priority: 9\n"))
    assert root.run(["--json", "policy", "diff", "policies", "other"]) == 1
    assert json.loads(capsys.readouterr().out)["changes"]
    for line in (["keys", "show", "nobody"], ["log", "export", "--output", "conf/proxy.yaml"]):
        root.run(["-q", "db", "upgrade"])
        capsys.readouterr()
        assert root.run(["--json", *line]) == 1
        assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 1


def test_a_server_that_does_not_run_is_a_4(capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["-q", "db", "upgrade"])
    capsys.readouterr()
    assert root.run(["--json", "state"]) == 4
    assert "tollhouse up" in json.loads(capsys.readouterr().out)["error"]["hint"]
