"""Reads a YAML file into msgspec Structs and reports every problem with its place. A leaf: stdlib, yaml, msgspec.

What YAML readers disagree on is refused with what to write instead: 1.1's booleans and number forms, duplicate keys,
anchors, tags. Reading blocks: call it at start, or in a thread. What a file means is its reader's business.
"""

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from sidecar.yamlfile.nodes import Mapping, Node, Problem, Scalar, Sequence, compose
from sidecar.yamlfile.overrides import overlay
from sidecar.yamlfile.typed import Walk

__all__ = ["ConfigInvalidError", "Document", "Problem", "content", "load", "parse", "read"]

MAX_BYTES: Final = 1024 * 1024

T = TypeVar("T")


class ConfigInvalidError(Exception):
    """What was read cannot be used; `problems` has everything that is wrong with it, in the order of the files."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Document(Generic[T]):
    """A file's value, and where its parts stand, for checks across fields."""

    path: Path
    value: T
    root: Node

    def position(self, keys: tuple[str | int, ...]) -> tuple[int, int]:
        """Line and column, from 1, of the value under `keys`; of the closest part above it where it is left out."""
        node = self.root
        for key in keys:
            inner = _child(node, key)
            if inner is None:
                break
            node = inner
        return node.line, node.column

    def key_position(self, keys: tuple[str | int, ...]) -> tuple[int, int]:
        """As `position`, but of the last key itself."""
        *above, last = keys
        node = self.root
        for key in above:
            node = _child(node, key) or node
        if isinstance(node, Mapping):
            for key_node, _ in node.entries:
                if isinstance(key_node, Scalar) and key_node.text == last:
                    return key_node.line, key_node.column
        return self.position(keys)

    def has(self, keys: tuple[str | int, ...]) -> bool:
        """Whether the file itself has a value under `keys`."""
        node: Node | None = self.root
        for key in keys:
            node = node and _child(node, key)
        return node is not None

    def problem(self, keys: tuple[str | int, ...], message: str) -> Problem:
        """A problem with the value under `keys`."""
        return Problem(str(self.path), *self.position(keys), message)


def read(path: Path, type_: type[T]) -> Document[T]:
    """Read one file. Raises ConfigInvalidError with every problem found, a missing file among them."""
    return parse(path, content(path), type_)


def content(path: Path) -> bytes:
    """A file's bytes, one more than may be at most. Raises ConfigInvalidError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigInvalidError([Problem(str(path), 0, 0, "there is no such file")]) from exc
    except OSError as exc:
        raise ConfigInvalidError([Problem(str(path), 0, 0, f"cannot be read: {exc.strerror}")]) from exc


def parse(path: Path, data: bytes, type_: type[T]) -> Document[T]:
    """As `read`, of bytes that were read from `path`."""
    problems: list[Problem] = []
    root = _compose(path, data, problems)
    return _typed(path, root, type_, problems)


def load(path: Path, type_: type[T], *, environ: MappingABC[str, str] | None = None, env_prefix: str = "") -> T:
    """Read one file, with the values that variables such as `PREFIX__SECTION__KEY` put in their place.

    `env_prefix` is the beginning of their names, underscores included. Raises ConfigInvalidError as `read`; a problem
    with a variable has its name as the path, and line 0.
    """
    problems: list[Problem] = []
    root = _compose(path, content(path), problems)
    if environ is not None and env_prefix:
        root = overlay(root, environ, env_prefix, problems)
    return _typed(path, root, type_, problems).value


def _compose(path: Path, data: bytes, problems: list[Problem]) -> Node:
    """The tree in the bytes. Problems that do not end the reading are added to `problems`."""
    if len(data) > MAX_BYTES:
        raise ConfigInvalidError([Problem(str(path), 0, 0, f"is longer than {MAX_BYTES} bytes")])
    root = compose(str(path), data, problems)
    if root is None:
        raise ConfigInvalidError(problems)
    return root


def _typed(path: Path, root: Node, type_: type[T], problems: list[Problem]) -> Document[T]:
    walk = Walk(problems)
    plain = walk.convert(root, msgspec.inspect.type_info(type_))
    if walk.problems:
        raise ConfigInvalidError(sorted(walk.problems))
    try:
        value = msgspec.convert(plain, type_)
    except msgspec.ValidationError as exc:
        # A check that a type makes itself, in __post_init__: its place is not known.
        raise ConfigInvalidError([Problem(str(path), root.line, root.column, str(exc))]) from exc
    return Document(path, value, root)


def _child(node: Node, key: str | int) -> Node | None:
    if isinstance(node, Mapping):
        found = [value for name, value in node.entries if isinstance(name, Scalar) and name.text == key]
        return found[0] if found else None
    if isinstance(node, Sequence) and isinstance(key, int) and 0 <= key < len(node.items):
        return node.items[key]
    return None
