"""What may be written on a command line, read off click's commands: for completion and for the page of the docs. Pure.

`Values` says what can follow: words of a closed list, a file, a folder, or what nobody can guess.
"""

from collections.abc import Iterator
from typing import Literal

import click
import msgspec

Values = tuple[str, ...] | Literal["file", "folder"] | None


class Option(msgspec.Struct, frozen=True):
    """An option's spellings and what it does. `metavar` is empty for a flag; `values`: of one that takes a value."""

    names: tuple[str, ...]
    help: str
    metavar: str
    values: Values

    @property
    def flag(self) -> bool:
        return not self.metavar


class Argument(msgspec.Struct, frozen=True):
    """A word that stands for itself."""

    name: str
    required: bool
    values: Values


class Command(msgspec.Struct, frozen=True):
    """`path` is what is written behind the program's name. A group has `commands`, by their first words."""

    path: tuple[str, ...]
    about: str
    words: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: dict[str, str]


def walk(command: click.Command, program: str) -> Iterator[Command]:
    """The program itself, then each of its commands, in the order in which they are listed."""
    yield from _walk(command, click.Context(command, info_name=program, **command.context_settings), ())


def _walk(command: click.Command, context: click.Context, path: tuple[str, ...]) -> Iterator[Command]:
    inner: dict[str, click.Command] = {}
    if isinstance(command, click.Group):
        named = {name: command.get_command(context, name) for name in command.list_commands(context)}
        inner = {name: found for name, found in named.items() if found is not None and not found.hidden}
    parameters = command.get_params(context)
    yield Command(
        path=path,
        about=command.get_short_help_str(200),
        words=command.help or "",
        options=tuple(_option(each, context) for each in parameters if isinstance(each, click.Option)),
        arguments=tuple(_argument(each) for each in parameters if isinstance(each, click.Argument)),
        commands={name: found.get_short_help_str(200) for name, found in inner.items()},
    )
    for name, found in inner.items():
        inside = click.Context(found, info_name=name, parent=context, **found.context_settings)
        yield from _walk(found, inside, (*path, name))


def _option(option: click.Option, context: click.Context) -> Option:
    metavar = "" if option.is_flag or option.count else option.make_metavar(context)
    names = tuple(sorted((*option.opts, *option.secondary_opts), key=len))
    return Option(names, option.help or "", metavar, _values(option.type) if metavar else None)


def _argument(argument: click.Argument) -> Argument:
    return Argument((argument.name or "").upper(), argument.required, _values(argument.type))


def _values(kind: click.ParamType[object]) -> Values:
    if isinstance(kind, click.Choice):
        return tuple(str(choice) for choice in kind.choices)
    if isinstance(kind, click.Path):
        return "file" if kind.file_okay else "folder"
    return None
