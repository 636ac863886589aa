"""`tollhouse test`: the stages in order, the first failure ends it, arguments go to pytest alone."""

import json
import sys
from pathlib import Path

import pytest

from proxy.cli import clients, root, suite
from proxy.cli.exits import CommandError
from proxy.cli.suite import Stage


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose stages are three small programs; the second fails where there is a file `broken`."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "tollhouse"\n')
    (tmp_path / "good.py").write_text("print('good')\n")
    (tmp_path / "second.py").write_text("import pathlib, sys\nsys.exit(3 if pathlib.Path('broken').exists() else 0)\n")
    (tmp_path / "pytest.py").write_text("import sys\nprint(sys.argv[1:])\n")
    stages = (
        Stage("first", (), module="good"),
        Stage("second", (), module="second"),
        Stage("third", (), module="good"),
    )
    monkeypatch.setattr(suite, "STAGES", stages)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, int]]:
    stages = json.loads(capsys.readouterr().out)["stages"]
    return [(stage["name"], stage["exit_code"]) for stage in stages]


def test_all_stages_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["--json", "test"]) == 0
    assert names(capsys) == [("first", 0), ("second", 0), ("third", 0)]


def test_the_first_failure_ends_it_with_its_code(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "broken").touch()
    assert root.run(["--json", "test"]) == 3
    assert names(capsys) == [("first", 0), ("second", 3)]


def test_the_failed_stage_is_named_to_people(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "broken").touch()
    root.run(["test"])
    assert "second: failed with exit code 3." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["tests/unit", "-k", "quota"], ["-q", "--json", "x"], ["-x", "--config", "y"]])
def test_arguments_go_to_pytest_and_to_it_alone(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert root.run(["test", *arguments]) == 0
    out, err = capfd.readouterr()
    assert str(arguments) in out
    assert "good" not in out
    assert "tests: pytest" in err


def test_images_are_built_by_tests_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert root.run(["test", "images", "--storage", "x"]) == 0
    asked = ["tests/images", "-c", "tests/images/pytest.ini", "--storage", "x"]
    assert str(asked) in capfd.readouterr().out


def test_clients_are_run_with_their_own_interpreter(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clients, "prepare", lambda root, _: root / "python")
    (Path("python")).symlink_to(sys.executable)
    assert root.run(["test", "clients", "-k", "langchain"]) == 0
    out, _ = capfd.readouterr()
    asked = ["tests/clients", "-c", "tests/clients/pytest.ini", f"--programs={Path(sys.executable).parent}"]
    assert str([*asked, "-k", "langchain"]) in out


def test_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert root.run(["test"]) == 1


def test_a_tool_that_is_not_installed_is_told_with_the_way_to_it() -> None:
    with pytest.raises(CommandError) as missing:
        Stage("walls", (), script="no-such-tool").command()
    assert "[sidecar,dev]" in missing.value.hint
    assert Stage("x", ("y",), module="z").command() == [sys.executable, "-m", "z", "y"]
