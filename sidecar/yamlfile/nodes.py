"""From bytes to nodes that know where they stand. No types here: a scalar is still its text.

Syntax errors end the reading; what is well-formed but not allowed (anchors, aliases, tags, duplicate keys) is noted and
leaves a `Broken` node, so that one reading finds all of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import yaml
from typing_extensions import override

MAX_DEPTH: Final = 20


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong at a place. `line` and `column` count from 1; 0 where there is no place, as with a variable."""

    path: str
    line: int
    column: int
    message: str

    @override
    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a document; `source` is the file or the variable it comes from."""

    source: str
    line: int
    column: int

    def problem(self, message: str) -> Problem:
        return Problem(self.source, self.line, self.column, message)


@dataclass(frozen=True, slots=True)
class Broken(Node):
    """A part about which a problem is noted already."""


@dataclass(frozen=True, slots=True)
class Scalar(Node):
    """Text. `plain`: it stands without quotes. `loose`: it may be a string, whatever it looks like."""

    text: str
    plain: bool
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Sequence(Node):
    """A list."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Mapping(Node):
    """Keys and values in the order of the file; a key that is not text is Broken."""

    entries: tuple[tuple[Node, Node], ...]


class _UnreadableError(Exception):
    """Reading ends here. The problem is its only argument."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def compose(source: str, data: bytes, problems: list[Problem]) -> Node | None:
    """The document in `data`, an empty mapping if there is none; None if it cannot be read to its end.

    What is wrong is added to `problems`.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8")
        problems.append(_at_index(source, before, len(before), "is not UTF-8 from here on"))
        return None
    builder = _Builder(source, problems)
    try:
        return builder.document(text)
    except _UnreadableError as exc:
        problems.append(exc.problem)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        said = ", ".join(part for part in (exc.context, exc.problem) if part)
        problems.append(Problem(source, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, said))
    except yaml.reader.ReaderError as exc:
        problems.append(_at_index(source, text, exc.position, "there is a control character here"))
    return None


def _at_index(source: str, text: str, index: int, message: str) -> Problem:
    before = text[:index]
    return Problem(source, before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1, message)


class _Builder:
    """Builds the tree from the parser's events. Mutable: `_events`, and the list of problems it was given."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self._source = source
        self._problems = problems
        self._events: Iterator[yaml.Event] = iter(())

    def document(self, text: str) -> Node:
        self._events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return Mapping(self._source, 1, 1, ())
        root = self._node(next(self._events), 1)
        next(self._events)  # the document's end
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise _UnreadableError(self._problem(following, "a second document begins here; a file holds one"))
        if isinstance(root, Scalar) and root.plain and not root.text:
            return Mapping(self._source, 1, 1, ())
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _UnreadableError(self._problem(event, f"nested deeper than {MAX_DEPTH} levels"))
        refused = self._refused(event)
        node = self._built(event, depth)
        if refused:
            self._problems.append(self._problem(event, refused))
            return Broken(node.source, node.line, node.column)
        return node

    def _built(self, event: yaml.Event, depth: int) -> Node:
        place = (self._source, *_position(event))
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(*place, tuple(self._items(depth)))
        if isinstance(event, yaml.MappingStartEvent):
            return Mapping(*place, tuple(self._entries(depth)))
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(*place, event.value, plain=event.style is None)
        return Broken(*place)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> Iterator[tuple[Node, Node]]:
        seen: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(self._node(event, depth + 1), seen)
            yield key, self._node(next(self._events), depth + 1)

    def _key(self, node: Node, seen: dict[str, int]) -> Node:
        """The key itself if it can be one. `seen`: the lines of the keys before it, by their text."""
        if isinstance(node, Broken):
            return node
        if not isinstance(node, Scalar) or (node.plain and not node.text):
            said = "a key must be text"
        elif node.plain and node.text == "<<":
            said = "merge keys are not supported; write the values out"
        elif node.text in seen:
            said = f"'{node.text}' stands here twice, first on line {seen[node.text]}"
        else:
            seen[node.text] = node.line
            return node
        self._problems.append(node.problem(said))
        return Broken(node.source, node.line, node.column)

    def _refused(self, event: yaml.Event) -> str | None:
        """Why YAML that is well-formed is not allowed here."""
        if isinstance(event, yaml.AliasEvent):
            return f"'*{event.anchor}': aliases are not allowed; write the value out"
        if getattr(event, "anchor", None) is not None:
            return "anchors are not allowed; write the value out where it is needed"
        tag = getattr(event, "tag", None)
        return None if tag is None else f"tags ({tag}) are not allowed; put text in quotes and numbers without"

    def _problem(self, event: yaml.Event, message: str) -> Problem:
        return Problem(self._source, *_position(event), message)


def _position(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    assert mark is not None, "PyYAML's parser gives every event a mark"  # noqa: S101 - an invariant, not input
    return mark.line + 1, mark.column + 1
