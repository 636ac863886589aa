"""Completion scripts for bash, zsh and fish, written from the commands. Pure.

Each script walks the words before the cursor to find which command they name, stepping over options' values; then it
offers that command's options, values or commands. A word is looked up as `COMMAND WORD` in one list.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from proxy.cli.grammar import Argument, Command, Option, Values

T = TypeVar("T")
_HEAD: Final = "# Completion of @PROGRAM@ for @SHELL@, made by `@PROGRAM@ completion @SHELL@`.\n"

# What is offered, in the words that bash and zsh share.
_CHOICE: Final = """\
    if [[ -n $skip ]]; then
        case "$at $before" in
@VALUES@
        esac
    elif [[ $current == -* ]]; then
        case "$at" in
@OPTIONS@
        esac
    else
        case "$at" in
@WORDS@
        esac
    fi
"""

_BASH: Final = (
    _HEAD
    + """
_@NAME@() {
    local at='' skip='' word='' found='' i
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    # bash makes three words of --option=value.
    if [[ $before == '=' ]]; then before=${COMP_WORDS[COMP_CWORD - 2]}; fi
    if [[ $current == '=' ]]; then current=''; fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == '=' ]]; then continue; fi
        if [[ -n $skip ]]; then skip=''; continue; fi
        case "$at $word" in
            @VALUED@) skip=$word ;;
            @COMMANDS@) at=${at:+$at }$word ;;
        esac
    done
"""
    + _CHOICE
    + """\
    local IFS=$'\\n'
    case "$found" in
        '<file>') compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")) ;;
        '<folder>') compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$current")) ;;
        *) COMPREPLY=($(compgen -W "${found// /$'\\n'}" -- "$current")) ;;
    esac
}
complete -F _@NAME@ @PROGRAM@
"""
)

_ZSH: Final = (
    "#compdef @PROGRAM@\n"
    + _HEAD
    + """
_@NAME@() {
    local at='' skip='' word='' i
    local current=${words[CURRENT]} before=${words[CURRENT - 1]}
    local -a found
    for ((i = 2; i < CURRENT; i++)); do
        word=${words[i]}
        if [[ -n $skip ]]; then skip=''; continue; fi
        case "$at $word" in
            (@VALUED@) skip=$word ;;
            (@COMMANDS@) at=${at:+$at }$word ;;
        esac
    done
    if [[ -z $skip && $current == --*=* ]]; then
        skip=$current before=${current%%=*}
        compset -P '*='
    fi
"""
    + _CHOICE
    + """\
    case "$found" in
        ('<file>') _files ;;
        ('<folder>') _files -/ ;;
        (?*) _describe 'tollhouse' found ;;
    esac
}
if [[ $funcstack[1] == _@NAME@ ]]; then _@NAME@ "$@"; else compdef _@NAME@ @PROGRAM@; fi
"""
)

_FISH: Final = (
    _HEAD
    + """
function __@NAME@_at
    set -l at ''
    set -l skip ''
    for word in (commandline -opc)[2..]
        if test -n "$skip"
            set skip ''
            continue
        end
        switch "$at $word"
            case @VALUED@
                set skip $word
            case @COMMANDS@
                set at (string trim -- "$at $word")
        end
    end
    test "$at" = "$argv[1]"
end
complete -c @PROGRAM@ -e
complete -c @PROGRAM@ -f
@LINES@
"""
)


def bash(commands: Sequence[Command], program: str) -> str:
    """Words only: bash shows no descriptions."""
    return _filled(
        _BASH,
        program,
        "bash",
        VALUED="|".join(map(_quoted, _valued(commands))),
        COMMANDS="|".join(map(_quoted, _inner(commands))),
        VALUES=_cases(_offers(commands), lambda offered: f"found={_quoted(_plain(offered))}", ""),
        OPTIONS=_cases(
            _all_options(commands), lambda found: f"found={_quoted(' '.join(name for name, _ in found))}", ""
        ),
        WORDS=_cases(_all_words(commands), lambda found: f"found={_quoted(' '.join(name for name, _ in found))}", ""),
    )


def zsh(commands: Sequence[Command], program: str) -> str:
    return _filled(
        _ZSH,
        program,
        "zsh",
        VALUED="|".join(map(_quoted, _valued(commands))),
        COMMANDS="|".join(map(_quoted, _inner(commands))),
        VALUES=_cases(_offers(commands), lambda offered: _array([(word, "") for word in _plain(offered).split()]), "("),
        OPTIONS=_cases(_all_options(commands), _array, "("),
        WORDS=_cases(_all_words(commands), _array, "("),
    )


def fish(commands: Sequence[Command], program: str) -> str:
    lines = [line for command in commands for line in _fish_lines(command, program)]
    return _filled(
        _FISH,
        program,
        "fish",
        VALUED=" ".join(map(_fish_quoted, _valued(commands))),
        COMMANDS=" ".join(map(_fish_quoted, _inner(commands))),
        LINES="\n".join(lines),
    )


SCRIPTS: Final[dict[str, Callable[[Sequence[Command], str], str]]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _filled(template: str, program: str, shell: str, **parts: str) -> str:
    for name, part in {"PROGRAM": program, "NAME": program.replace("-", "_"), "SHELL": shell, **parts}.items():
        template = template.replace(f"@{name}@", part)
    return template


def _valued(commands: Sequence[Command]) -> list[str]:
    """Each option that takes a value, behind its command."""
    return [
        f"{' '.join(command.path)} {name}"
        for command in commands
        for option in command.options
        if not option.flag
        for name in option.names
    ]


def _inner(commands: Sequence[Command]) -> list[str]:
    """Each command, behind its group."""
    return [f"{' '.join(command.path[:-1])} {command.path[-1]}" for command in commands if command.path]


def _offers(commands: Sequence[Command]) -> Iterator[tuple[str, Values]]:
    """What can follow each option that takes a value we know of."""
    for command in commands:
        for option in command.options:
            for name in option.names if option.values else ():
                yield f"{' '.join(command.path)} {name}", option.values


def _all_options(commands: Sequence[Command]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for command in commands:
        yield " ".join(command.path), [(name, option.help) for option in command.options for name in option.names]


def _all_words(commands: Sequence[Command]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A group's commands, or what a command's first argument can be."""
    for command in commands:
        values = next((argument.values for argument in command.arguments), None)
        found = list(command.commands.items()) or [(word, "") for word in _plain(values).split()]
        if found:
            yield " ".join(command.path), found


def _plain(values: Values) -> str:
    if values is None:
        return ""
    return f"<{values}>" if isinstance(values, str) else " ".join(values)


def _cases(found: Iterator[tuple[str, T]], then: Callable[[T], str], opening: str) -> str:
    return "\n".join(f"            {opening}{_quoted(name)}) {then(value)} ;;" for name, value in found)


def _array(found: Sequence[tuple[str, str]]) -> str:
    """As zsh's _describe takes it: `word:what it is`."""
    items = [_quoted(word.replace(":", "\\:") + (f":{about}" if about else "")) for word, about in found]
    return f"found=({' '.join(items)})"


def _quoted(text: str) -> str:
    """One word of bash's or zsh's; no line break."""
    return "'" + " ".join(text.split("\n")).replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + " ".join(text.split("\n")).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_lines(command: Command, program: str) -> Iterator[str]:
    there = f"__{program.replace('-', '_')}_at {_fish_quoted(' '.join(command.path))}"
    here = f"complete -c {program} -n {_fish_quoted(there)}"
    for name, about in command.commands.items():
        yield f"{here} -a {name} -d {_fish_quoted(about)}"
    for argument in command.arguments[:1]:
        yield from _fish_argument(here, argument)
    for option in command.options:
        yield f"{here} {_fish_option(option)} -d {_fish_quoted(option.help)}"


def _fish_argument(here: str, argument: Argument) -> Iterator[str]:
    if argument.values in {"file", "folder"}:
        yield f"{here} -F"
    elif argument.values:
        yield f"{here} -a {_fish_quoted(' '.join(argument.values))}"


def _fish_option(option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    if option.flag:
        return names
    if option.values in {"file", "folder"}:
        return f"{names} -r -F"
    offered = f" -a {_fish_quoted(' '.join(option.values))}" if option.values else ""
    return f"{names} -x{offered}"
