"""docs/cli.md is made from the commands: each has its section, each option its line, each exit code its row.

`TOLLHOUSE_WRITE_DOCS=1 ./tollhouse test tests/unit/test_cli_page.py` writes the page anew.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from proxy.cli.doctor import NAMES, OF_HOUSE, OF_MACHINE
from proxy.cli.exits import Exit
from proxy.cli.grammar import Command, Option, walk
from proxy.cli.root import tollhouse
from sidecar.__main__ import command as sidecar

PAGE = Path(__file__).parents[2] / "docs/cli.md"
PROGRAMS: Final[dict[str, click.Command]] = {"tollhouse": tollhouse, "tollhouse-sidecar": sidecar}
# Told once, at the head of the page.
COMMON: Final = frozenset({"--config", "--json", "--quiet", "--help", "--version"})
# The commands that answer with no document, and why.
WITHOUT_JSON: Final = {
    "tollhouse test": "what follows it is pytest's; with `--json` before `test` it does",
    "tollhouse-sidecar serve": "its log is JSON lines already",
}
MEANINGS: Final = {
    Exit.OK: "done",
    Exit.FAILED: "not done; or what was asked for is not so: a check failed, policies differ, a server is not ready",
    Exit.USAGE: "the command line is wrong; nothing was done",
    Exit.CONFIG_INVALID: "a configuration or policy file is wrong; each mistake is told with its line and column",
    Exit.NOT_REACHABLE: "the server, or the package index that a model comes from, does not answer",
    Exit.INTERRUPTED: "ended by Ctrl-C before it was done",
}
CHECKS: Final = {**OF_MACHINE, **OF_HOUSE}
HEAD: Final = """\
# The command line

Made from the commands themselves; `-h` behind any of them shows the same. In a checkout write `./tollhouse`.

## What all commands take

Before the command's name or behind it; those of `tollhouse-sidecar` behind it:

| option | what |
|---|---|
| `--config FILE` | The configuration; if not given, what `TOLLHOUSE_CONFIG` names, or conf/proxy.yaml; \
for `tollhouse-sidecar` what `TOLLHOUSE_SIDECAR_CONFIG` names, or conf/sidecar.yaml. |
| `--json` | Answer with one JSON document on stdout, failures too: `{"error": {"message", "hint", "exit_code"}}`. |
| `-q`, `--quiet` | Leave remarks and progress out. Results, warnings and errors stay. |
| `-h`, `--help` | Show what a command does and takes. |

Results go to stdout, all else to stderr. Tables, colours and progress bars are for terminals: a pipe gets lines with
tabs and no header. `NO_COLOR=1` takes the colours away.

Without `--json`: {without}.

## Exit codes

| code | meaning |
|---|---|
{codes}

A program that a signal ended has 128 and the signal's number, as in shells.

## Completion

```sh
tollhouse completion bash > ~/.local/share/bash-completion/completions/tollhouse
tollhouse completion zsh > ~/.zfunc/_tollhouse
tollhouse completion fish > ~/.config/fish/completions/tollhouse.fish
```

For zsh the folder must be one of `$fpath` before `compinit` runs. The script completes `./tollhouse` too. It is made
from the commands and starts nothing at the touch of a key: make it again after an upgrade.

## What the doctor looks at

`tollhouse doctor` answers each with ok, warn or fail, with what it saw, and with what to do. `--only NAME` chooses.

| check | well if |
|---|---|
{checks}
"""


def commands() -> Iterator[tuple[str, Command]]:
    for program, command in PROGRAMS.items():
        for found in walk(command, program):
            yield " ".join((program, *found.path)), found


def page() -> str:
    codes = "\n".join(f"| {code.value} | {MEANINGS[code]} |" for code in Exit)
    without = "; ".join(f"`{name}` ({why})" for name, why in WITHOUT_JSON.items())
    checks = "\n".join(f"| `{name}` | {_well(name)} |" for name in NAMES)
    parts = [HEAD.replace("{codes}", codes).replace("{without}", without).replace("{checks}", checks)]
    for name, command in commands():
        if not command.path:
            parts.append(f"## {name}\n\n{_prose(command.words)}\n")
        elif not command.commands:
            parts.append(_section(name, command))
    return "\n".join(parts)


def _well(name: str) -> str:
    """By the first paragraph of what the check says of itself."""
    if name not in CHECKS:
        return "The configuration files are there and valid."
    return " ".join((CHECKS[name].__doc__ or "").split("\n\n")[0].split())


def _section(name: str, command: Command) -> str:
    words = [argument.name if argument.required else f"[{argument.name}]" for argument in command.arguments]
    own = [option for option in command.options if not COMMON & set(option.names)]
    rows = [f"| {_spelt(option)} | {_cell(option)} |" for option in own]
    table = ["| option | what |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([f"### {' '.join([name, *words])}", "", _prose(command.words), "", *table])


def _prose(text: str) -> str:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return "\n\n".join(paragraph.replace("<", "&lt;") for paragraph in paragraphs)


def _spelt(option: Option) -> str:
    *others, last = option.names
    return ", ".join([*(f"`{name}`" for name in others), f"`{f'{last} {option.metavar}'.strip()}`"]).replace("|", "\\|")


def _cell(option: Option) -> str:
    return option.help.replace("|", "\\|")


def test_the_page_is_what_the_commands_say() -> None:
    if os.environ.get("TOLLHOUSE_WRITE_DOCS"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "see the head of this file for how to write it anew"


def test_each_command_and_option_says_what_it_is() -> None:
    nameless = [name for name, command in commands() if not command.words]
    silent = [(name, option.names) for name, command in commands() for option in command.options if not option.help]
    assert (nameless, silent) == ([], [])


def test_each_command_answers_with_json_or_is_named_as_one_that_does_not() -> None:
    leaves = {name: command for name, command in commands() if not command.commands}
    without = {name for name, leaf in leaves.items() if not any("--json" in option.names for option in leaf.options)}
    assert without == set(WITHOUT_JSON)


@pytest.mark.parametrize("code", list(Exit))
def test_each_exit_code_has_its_row(code: Exit) -> None:
    assert re.search(rf"^\| {code.value} \| \w", PAGE.read_text(), re.MULTILINE)
