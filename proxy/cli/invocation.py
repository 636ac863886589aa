"""What every command knows about how it was called, and the options that every command takes.

`--config`, `--json` and `-q` may stand before a command's name or after it.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from proxy.cli.screen import Screen
from proxy.settings import Proxy, load_settings

DEFAULT_CONFIG: Final = Path("conf/proxy.yaml")
# For a machine whose configuration always lies elsewhere, such as in /etc/tollhouse.
CONFIG_VARIABLE: Final = "TOLLHOUSE_CONFIG"


def _usual_config() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


@dataclass(slots=True)
class Invocation:
    """One call of the command line. Mutable: each field is set by its option, wherever that stands."""

    config: Path = field(default_factory=_usual_config)
    as_json: bool = False
    quiet: bool = False

    @property
    def screen(self) -> Screen:
        return Screen(sys.stdout, sys.stderr, as_json=self.as_json, quiet=self.quiet)

    def settings(self) -> Proxy:
        """What `--config` and the environment say. Raises ConfigInvalidError."""
        return load_settings(self.config, dict(os.environ))


def _note(context: click.Context, parameter: click.Parameter, value: object) -> None:
    # An option that is not given must not undo the one before the command's name.
    if value and parameter.name:
        setattr(context.ensure_object(Invocation), parameter.name, value)


def _options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            callback=_note,
            expose_value=False,
            help=f"The proxy's configuration; if not given, what {CONFIG_VARIABLE} names, or {DEFAULT_CONFIG}.",
        ),
        click.Option(
            ["--json", "as_json"], is_flag=True, callback=_note, expose_value=False, help="Answer with a JSON document."
        ),
        click.Option(
            ["-q", "--quiet", "quiet"], is_flag=True, callback=_note, expose_value=False, help="Leave remarks out."
        ),
    ]


class HouseCommand(click.Command):
    """A command with the options that all have."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_options())


class HouseGroup(click.Group):
    """A group of commands with the options that all have."""

    command_class: type[click.Command] | None = HouseCommand

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(_options())


def command(name: str, **options: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A top-level command, made from a function that gives its exit code or None."""
    return click.command(name, cls=HouseCommand, **options)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
