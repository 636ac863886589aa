"""What hints tell to type can be typed where they are read."""

import ast
import re
from pathlib import Path

import pytest

from proxy.cli.program import program

CLI = Path(__file__).parents[4] / "proxy/cli"
TELL = {"failed", "warning", "ok", "remark", "CommandError"}


def test_a_checkout_s_commands_start_with_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert program() == "tollhouse"
    launcher = tmp_path / "tollhouse"
    launcher.touch()
    assert program() == "tollhouse"
    launcher.chmod(0o755)
    assert program() == "./tollhouse"


def test_nothing_that_is_told_names_a_program_that_may_not_be_on_the_path() -> None:
    told = [
        (path.name, constant.value)
        for path in CLI.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) in TELL
        for constant in ast.walk(call)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    ]
    assert len(told) > 100
    assert [each for each in told if re.search(r"(?<!/)\btollhouse [a-z]", each[1])] == []
