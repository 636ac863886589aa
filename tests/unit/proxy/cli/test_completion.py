"""The completion scripts, run by the shells they are for. A shell that is not installed is skipped."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from proxy.cli import root
from proxy.cli.root import COMMANDS

SHELLS: Final = {shell: shutil.which(shell) for shell in ("bash", "zsh", "fish")}
BASH: Final = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_tollhouse
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh's own functions want a terminal; these say what they are handed.
ZSH: Final = """
compdef() { : }
compset() { : }
_files() { print "<files>" }
_describe() { print -rl -- "${(@P)2}" }
source "$1"; shift
words=("$@"); CURRENT=$#
_tollhouse
"""
FISH: Final = """
source $argv[1]
complete -C (string join -- ' ' $argv[2..])
"""
STARTS: Final = {
    "bash": ["--norc", "-c", BASH, "bash"],
    "zsh": ["-f", "-c", ZSH, "zsh"],
    "fish": ["--no-config", "-c", FISH],
}
Complete = Callable[..., list[str]]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert root.run(["completion", shell]) == 0
    path = folder / f"tollhouse.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Complete:
    """What a shell offers for the last of some words; descriptions are cut off."""
    shell = request.param
    program = SHELLS[shell]
    if program is None:
        pytest.skip(f"{shell} is not installed")
    monkeypatch.chdir(tmp_path)
    # fish looks for a home of its own.
    monkeypatch.setenv("HOME", str(tmp_path))
    path = script(shell, tmp_path, capsys)
    start = [program, *STARTS[shell]]

    def offered(*words: str) -> list[str]:
        done = subprocess.run([*start, path, "tollhouse", *words], check=False, capture_output=True, text=True)
        assert done.stderr == ""
        # Behind a word stands what it is: in fish after a tab, in zsh after a colon. What was typed so far is looked at
        # by zsh's _describe.
        bare = [re.split(r"\t|(?<!\\):", line)[0] for line in done.stdout.splitlines() if line]
        return sorted(word for word in bare if word.startswith(words[-1]) or word == "<files>")

    return offered


def test_every_command_is_offered(complete: Complete) -> None:
    assert complete("") == sorted(COMMANDS)


def test_a_group_s_commands_are_offered_by_their_beginning(complete: Complete) -> None:
    assert complete("keys", "rev") == ["revoke"]
    assert complete("keys", "r") == ["revoke", "rotate"]


def test_options_are_those_of_the_command(complete: Complete) -> None:
    assert complete("ledger", "check", "--") == ["--config", "--help", "--json", "--quiet"]


def test_a_value_is_not_taken_for_a_command(complete: Complete) -> None:
    assert complete("keys", "create", "--account", "list", "--sc") == ["--scope"]
    assert complete("--config", "up", "ledger", "") == ["check"]


def test_the_values_of_a_closed_list_are_offered(complete: Complete) -> None:
    assert complete("doctor", "--only", "po") == ["policy", "ports"]
    assert complete("completion", "") == ["bash", "fish", "zsh"]


def test_a_file_is_offered_where_one_is_wanted(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "their.yaml").touch()
    assert complete("state", "--config", "the") in (["their.yaml"], ["<files>"])
    assert complete("policy", "check", "the") in (["their.yaml"], ["<files>"])


def test_nothing_is_offered_where_nobody_can_guess(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "their.yaml").touch()
    assert complete("keys", "create", "--account", "") == []


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", ["--only", "=", "led"]), ("zsh", ["--only=led"]), ("fish", ["--only=led"])]
)
def test_values_are_offered_behind_an_equals_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shell: str, words: list[str]
) -> None:
    program = SHELLS[shell]
    if program is None:
        pytest.skip(f"{shell} is not installed")
    start = [program, *STARTS[shell], script(shell, tmp_path, capsys), "tollhouse", "doctor"]
    done = subprocess.run([*start, *words], check=True, capture_output=True, text=True)
    assert "ledger" in done.stdout


def test_an_unknown_shell_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err
