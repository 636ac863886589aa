"""The boundary of the command line: what is raised becomes words, an exit code, and a document for programs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

from proxy import __main__
from proxy.cli import root
from proxy.cli.exits import CommandError, Exit
from proxy.cli.invocation import HouseCommand, Invocation, pass_invocation
from sidecar.wire.errors import ApiError
from sidecar.yamlfile import ConfigInvalidError, Problem


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Make `tollhouse usage` a command that raises what it is given."""

    def install(raised: BaseException | None) -> None:
        @click.command("usage", cls=HouseCommand)
        @pass_invocation
        def usage(invocation: Invocation) -> int:
            if raised is not None:
                raise raised
            invocation.screen.reply({"config": str(invocation.config)}, lambda: str(invocation.config))
            return 7

        monkeypatch.setattr(root.Root, "get_command", lambda *_: usage)

    return install


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (CommandError("No.", hint="Do this."), 1, "Error: No.\nDo this.\n"),
        (CommandError("Gone.", code=Exit.NOT_REACHABLE), 4, "Error: Gone.\n"),
        (ApiError(404, "No such key."), 1, "Error: No such key.\n"),
        (
            PermissionError(13, "Permission denied", "run/x"),
            1,
            "Error: run/x: Permission denied\nRun the command as the user who owns it, or see its permissions.\n",
        ),
        (OSError(28, "No space left", "run/x"), 1, "Error: run/x: No space left\nFree some space on that disk.\n"),
        (ConfigInvalidError([Problem("p.yaml", 3, 4, "is wrong")]), 3, "p.yaml:3:4: is wrong\n1 problem to repair.\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (click.ClickException("Not like this."), 1, "Error: Not like this.\n"),
    ],
)
def test_what_is_raised_becomes_words_and_a_code(
    raising: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    said: str,
) -> None:
    raising(raised)
    assert root.run(["usage"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", said)


def test_a_command_s_own_code_is_the_exit_code(raising: Callable[..., None]) -> None:
    raising(None)
    assert root.run(["usage"]) == 7


@pytest.mark.parametrize("line", [["--json", "usage"], ["usage", "--json"]])
def test_json_may_stand_before_or_after_the_command(
    raising: Callable[..., None], capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    raising(None)
    root.run(line)
    assert json.loads(capsys.readouterr().out) == {"config": "conf/proxy.yaml"}


def test_an_interruption_while_the_program_is_loaded_is_one_like_any_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "proxy.cli.root", Interrupted("proxy.cli.root"))
    assert __main__.main() == Exit.INTERRUPTED
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("line", [["--config", "x.yaml", "usage"], ["usage", "--config", "x.yaml"]])
def test_config_may_stand_before_or_after_the_command(
    raising: Callable[..., None], capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    raising(None)
    root.run(line)
    assert capsys.readouterr().out == "x.yaml\n"


@pytest.mark.parametrize("line", [["--json", "usage", "--wrong"], ["usage", "--wrong", "--json"]])
def test_a_wrong_option_is_a_document_too(
    raising: Callable[..., None], capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    raising(None)
    assert root.run(line) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


@pytest.mark.parametrize("line", [["sing", "--json"], ["keys", "sing", "--json"], ["doctor", "--only", "x", "--json"]])
def test_what_is_wrong_before_json_is_a_document_too(capsys: pytest.CaptureFixture[str], line: list[str]) -> None:
    assert root.run(line) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_a_missing_configuration_says_who_writes_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert root.run(["policy", "check"]) == 3
    assert "conf/proxy.yaml: there is no such file\n" in (said := capsys.readouterr().err)
    assert "`tollhouse up` writes a first configuration" in said
    assert "--config FILE" in said


@pytest.mark.parametrize("line", [["--config", "x.yaml", "usage"], ["usage", "--config", "x.yaml"], ["usage"]])
def test_the_configuration_is_the_option_s_before_the_environment_s(
    raising: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: list[str],
) -> None:
    monkeypatch.setenv("TOLLHOUSE_CONFIG", "/etc/tollhouse/proxy.yaml")
    raising(None)
    root.run(line)
    assert capsys.readouterr().out == ("x.yaml\n" if "--config" in line else "/etc/tollhouse/proxy.yaml\n")


def test_up_says_first_that_traces_cannot_be_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "sidecar.otlp", None)
    assert root.run(["up"]) == 3
    assert "run: pip install 'tollhouse[otel]'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_every_command_of_the_table_is_there_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in root.COMMANDS:
        assert root.run([name, "--help"]) == 0
        assert f"Usage: tollhouse {name}" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["sing"]) == 2
    assert "No such command 'sing'" in capsys.readouterr().err


def test_help_lists_the_commands_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [shown.index(f"\n  {name} ") for name in root.COMMANDS] == sorted(
        shown.index(f"\n  {name} ") for name in root.COMMANDS
    )


def test_version_names_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tollhouse ")
