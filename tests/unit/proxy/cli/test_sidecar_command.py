"""The sidecar's command, run from here: it is found, its exit codes are kept, its absence is told with the remedy."""

import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from proxy.cli import root, sidecar_command
from proxy.cli.exits import CommandError, Exit
from proxy.cli.sidecar_command import (
    SidecarEngine,
    ask_sidecar_command,
    executable,
    load_sidecar_config,
    run_sidecar_command,
)
from sidecar.settings import Engine
from sidecar.yamlfile import ConfigInvalidError


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command in the place of `tollhouse-sidecar` that prints its arguments and ends as `code` says."""
    path = tmp_path / "tollhouse-sidecar"
    path.write_text(
        f"#!{sys.executable}\nimport os, pathlib, signal, sys\nprint(sys.argv[1:])\nsys.stdout.flush()\n"
        "code = int(pathlib.Path(__file__).with_name('code').read_text())\n"
        "sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)\n"
    )
    path.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setattr(sidecar_command, "executable", lambda: path)
    return path


def test_what_it_says_on_stdout_is_the_answer(program: Path) -> None:
    assert ask_sidecar_command("fetch", "--json") == b"['fetch', '--json']\n"


@pytest.mark.parametrize(("code", "ours"), [(1, 1), (3, 3), (4, 4), (130, 130), (99, 1), (-15, 1)])
def test_a_failure_keeps_its_exit_code_if_it_is_one_of_ours(program: Path, code: int, ours: int) -> None:
    program.with_name("code").write_text(str(code))
    with pytest.raises(CommandError, match="`tollhouse-sidecar fetch` ended") as failed:
        ask_sidecar_command("fetch")
    assert failed.value.code is Exit(ours)


@pytest.mark.parametrize(
    ("document", "raised"),
    [
        ('{"error": {"message": "There is none.", "hint": "Get one.", "exit_code": 4}}', CommandError),
        ('{"problems": [{"path": "x", "line": 1, "column": 2, "message": "no"}], "exit_code": 3}', ConfigInvalidError),
    ],
)
def test_a_failure_has_the_words_of_its_document(program: Path, document: str, raised: type[Exception]) -> None:
    program.write_text(f"#!/bin/sh\necho '{document}'\nexit 4\n")
    with pytest.raises(raised) as failed:
        ask_sidecar_command("fetch", "--json")
    if isinstance(failed.value, CommandError):
        assert (failed.value.message, failed.value.hint) == ("There is none.", "Get one.")
        assert failed.value.code is Exit.NOT_REACHABLE


def test_a_signal_is_told_as_shells_do(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program.with_name("code").write_text("-15")
    assert run_sidecar_command("list") == 143
    assert capfd.readouterr().out == "['list']\n"


def test_model_commands_are_the_sidecar_s(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program.with_name("code").write_text("4")
    assert root.run(["model", "fetch", "some-model", "--sidecar-config", "x.yaml", "--json"]) == 4
    assert capfd.readouterr().out == "['fetch', '--config', 'x.yaml', '--json', 'some-model']\n"
    root.run(["model", "list"])
    assert capfd.readouterr().out == "['list', '--config', 'conf/sidecar.yaml']\n"


def test_without_the_extra_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_command, "_EXTRA", ("no_such_package",))
    with pytest.raises(CommandError, match="no_such_package missing") as missing:
        executable()
    assert "pip install 'tollhouse[sidecar]'" in missing.value.hint


def test_what_an_engine_may_be_is_what_the_sidecar_says() -> None:
    ours, theirs = get_type_hints(SidecarEngine), get_type_hints(Engine)
    assert ours == {name: theirs[name] for name in ours}


def test_the_little_that_is_read_is_what_the_sidecar_reads(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text("model: {id: m, source: s}\nengine: {precision: int8}\n")
    environ = {"TOLLHOUSE_SIDECAR__SOCKET": "run/other.sock", "TOLLHOUSE_SIDECAR__ENGINE__THREADS": "2"}
    found = load_sidecar_config(path, environ)
    assert (found.model.id, found.model.source, found.socket) == ("m", "s", "run/other.sock")
    with pytest.raises(ConfigInvalidError):
        load_sidecar_config(tmp_path / "none.yaml", {})
