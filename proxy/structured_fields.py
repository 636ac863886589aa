"""Structured fields (RFC 9651), as far as signatures need them: dictionaries of byte sequences and of inner lists.

Strict: what breaks the grammar, names a member or a parameter twice, or has a type that no signature has, is refused
whole. Inner lists hold strings.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")
Bare = str | int | bytes | bool

_KEY: Final = re.compile(r"[a-z*][a-z0-9_.*-]*")
_INTEGER: Final = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_STRING: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BYTES: Final = re.compile(r":([A-Za-z0-9+/=]*):")
_BOOLEAN: Final = re.compile(r"\?([01])")
_BLANKS: Final = re.compile(r"[ \t]*")
_SPACES: Final = re.compile(r" *")


class FieldError(ValueError):
    """The field breaks the grammar."""


@dataclass(frozen=True, slots=True)
class Item:
    """One string of an inner list, with its parameters."""

    value: str
    parameters: Mapping[str, Bare]


@dataclass(frozen=True, slots=True)
class InnerList:
    """A list of strings with parameters of its own. `text` is its canonical form."""

    items: tuple[Item, ...]
    parameters: Mapping[str, Bare]

    @property
    def text(self) -> str:
        inside = " ".join(_written(item.value) + _parameters_written(item.parameters) for item in self.items)
        return f"({inside}){_parameters_written(self.parameters)}"


class _Scanner:
    """Mutable: `at`, how far it is read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def over(self) -> bool:
        return self.at == len(self.text)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def need(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Raises FieldError."""
        found = self.take(pattern)
        if found is None:
            raise FieldError(f"unexpected text at {self.at}")
        return found

    def skip(self, character: str) -> bool:
        if not self.text.startswith(character, self.at):
            return False
        self.at += 1
        return True


def inner_lists(text: str) -> dict[str, InnerList]:
    """A dictionary of inner lists. Raises FieldError."""
    return _dictionary(text, _inner_list)


def byte_sequences(text: str) -> dict[str, bytes]:
    """A dictionary of byte sequences; their parameters are passed over. Raises FieldError."""
    return _dictionary(text, _byte_sequence)


def _dictionary(text: str, member: Callable[[_Scanner], T]) -> dict[str, T]:
    scanner = _Scanner(text.strip(" "))
    found: dict[str, T] = {}
    while True:
        key = scanner.need(_KEY)[0]
        if key in found or not scanner.skip("="):
            raise FieldError(f"'{key}' stands twice, or has no value")
        found[key] = member(scanner)
        scanner.take(_BLANKS)
        if scanner.over:
            return found
        if not scanner.skip(","):
            raise FieldError(f"unexpected text at {scanner.at}")
        scanner.take(_BLANKS)


def _inner_list(scanner: _Scanner) -> InnerList:
    if not scanner.skip("("):
        raise FieldError("an inner list is wanted")
    items: list[Item] = []
    while True:
        spaces = scanner.need(_SPACES)[0]
        if scanner.skip(")"):
            return InnerList(tuple(items), _parameters(scanner))
        if items and not spaces:
            raise FieldError(f"a space is wanted at {scanner.at}")
        items.append(Item(_unquoted(scanner.need(_STRING)[1]), _parameters(scanner)))


def _byte_sequence(scanner: _Scanner) -> bytes:
    value = _bytes(scanner.need(_BYTES)[1])
    _parameters(scanner)
    return value


def _parameters(scanner: _Scanner) -> dict[str, Bare]:
    found: dict[str, Bare] = {}
    while scanner.skip(";"):
        scanner.take(_SPACES)
        key = scanner.need(_KEY)[0]
        if key in found:
            raise FieldError(f"'{key}' stands twice")
        found[key] = _bare(scanner) if scanner.skip("=") else True
    return found


def _bare(scanner: _Scanner) -> Bare:
    """A string, an integer, bytes or a flag. Raises FieldError for what no signature has: tokens, decimals, dates."""
    if (string := scanner.take(_STRING)) is not None:
        return _unquoted(string[1])
    if (integer := scanner.take(_INTEGER)) is not None:
        return int(integer[0])
    if (octets := scanner.take(_BYTES)) is not None:
        return _bytes(octets[1])
    return scanner.need(_BOOLEAN)[1] == "1"


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise FieldError("this is not base64") from exc


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _written(value: Bare) -> str:
    if isinstance(value, bool):
        return f"?{value:d}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f":{base64.b64encode(value).decode()}:"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _parameters_written(parameters: Mapping[str, Bare]) -> str:
    return "".join(f";{key}" if value is True else f";{key}={_written(value)}" for key, value in parameters.items())
