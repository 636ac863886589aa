"""`tollhouse test`: what a change must pass, from a checkout: style, types, walls between the rooms, tests."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.text import Text

from proxy.cli import clients
from proxy.cli.exits import CommandError, Exit
from proxy.cli.invocation import Invocation, pass_invocation

MARK: Final = 'name = "tollhouse"'
STDERR: Final = 2
# Processes that share the tests: what is in tests/e2e takes as long as all others together.
PROCESSES: Final = "2"
IMAGES: Final = "images"
IMAGE_TESTS: Final = "tests/images"
DEVELOPER_INSTALL: Final = "pip install -e '.[sidecar,dev]'"


@dataclass(frozen=True, slots=True)
class Stage:
    """One check. `module` is run with an interpreter, this one unless said; `script` lies beside it."""

    name: str
    arguments: tuple[str, ...]
    module: str = ""
    script: str = ""
    python: str = sys.executable

    def command(self) -> list[str]:
        """Raises CommandError."""
        if self.module:
            return [self.python, "-m", self.module, *self.arguments]
        path = Path(sys.executable).parent / self.script
        if not path.exists():
            raise CommandError(f"{self.script} is not installed.", hint=f"Install it: {DEVELOPER_INSTALL}")
        return [str(path), *self.arguments]


class Result(msgspec.Struct, frozen=True):
    """How a stage ended."""

    name: str
    exit_code: int
    seconds: float


STAGES: Final = (
    Stage("style", ("check",), module="ruff"),
    Stage("format", ("format", "--check"), module="ruff"),
    Stage("types", (), module="mypy"),
    Stage("walls", (), script="lint-imports"),
    Stage("tests", ("--numprocesses", PROCESSES, "--dist", "loadfile"), module="pytest"),
)


@click.command(
    "test",
    # All that stands after `test` is pytest's, its -q and its --help too.
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    },
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def test(invocation: Invocation, arguments: tuple[str, ...]) -> int:
    """Run the checks and tests of a checkout; with ARGUMENTS, only pytest with these.

    tollhouse test tests/unit -k quota

    After `clients`: other people's clients against a running Tollhouse, in an environment of their own.

    tollhouse test clients -k langchain

    After `images`: both images are built, and a chat runs through their containers; as root, in four to ten minutes.

    tollhouse test images --storage FOLDER
    """
    if not _is_checkout(Path.cwd()):
        raise CommandError("This folder is not a checkout of Tollhouse.", hint="Run it where its pyproject.toml lies.")
    stages = _stages(invocation, arguments)
    results: list[Result] = []
    for stage in stages:
        results.append(_run(invocation, stage))
        if results[-1].exit_code:
            break
    code = results[-1].exit_code
    took = sum(result.seconds for result in results)
    said = f"All passed in {took:.0f} s." if not code else f"{results[-1].name}: failed with exit code {code}."
    invocation.screen.reply({"stages": results}, lambda: Text(said, "bold red" if code else "bold green"))
    return code


def _stages(invocation: Invocation, arguments: tuple[str, ...]) -> tuple[Stage, ...]:
    if not arguments:
        return STAGES
    if arguments[0] == IMAGES:
        return (Stage(IMAGES, (IMAGE_TESTS, "-c", f"{IMAGE_TESTS}/pytest.ini", *arguments[1:]), module="pytest"),)
    if arguments[0] != clients.TARGET:
        return (Stage("tests", arguments, module="pytest"),)
    python = clients.prepare(Path.cwd(), invocation.screen)
    chosen = (clients.TESTS, "-c", clients.PYTEST, f"--programs={Path(sys.executable).parent}", *arguments[1:])
    return (Stage(clients.TARGET, chosen, module="pytest", python=str(python)),)


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return project.is_file() and MARK in project.read_text()


def _run(invocation: Invocation, stage: Stage) -> Result:
    command = stage.command()
    invocation.screen.remark(Text(f"── {stage.name}: {_shown(stage)}", "bold"))
    began = time.monotonic()
    # What a stage prints is a remark when the result is a document.
    done = subprocess.run(command, check=False, stdout=STDERR if invocation.as_json else None)  # noqa: S603 - ours
    seconds = round(time.monotonic() - began, 2)
    invocation.screen.remark(Text(f"   {seconds:.1f} s", "dim"))
    # A negative one is the signal that ended it; shells say 128 + signal.
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return Result(stage.name, code or Exit.OK, seconds)


def _shown(stage: Stage) -> str:
    return " ".join((stage.module or stage.script, *stage.arguments))
