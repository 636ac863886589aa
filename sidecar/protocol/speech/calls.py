"""What the formats of calls have in common: JSON that comes in pieces, calls in it, and words around calls.

A call begins with its arguments: before that, what is not as it should be is words, marker and all, and afterwards
what follows the arguments is. A tool that is not among those offered is no call.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Final

from sidecar.protocol.speech.page import SPACE, MalformedError, Page, Reading
from sidecar.protocol.speech.pieces import Kind

# The tools that are offered, by their names: the JSON Schema of each one's arguments.
Schemas = Mapping[str, Mapping[str, object]]

_SIGNS: Final = re.compile(r'["\\{}\[\]]')
_ARGUMENTS: Final = ("arguments", "parameters")
_PASSED_OVER: Final = ("id", "type")


def told(page: Page, markers: tuple[str, ...], calls: Callable[[str], Reading[None]]) -> Reading[None]:
    """Words to the end of the answer, and behind each marker what `calls` reads; it is given the marker."""
    while marker := (yield from page.tell(Kind.WORDS, *markers)):
        page.read(len(marker))
        yield from attempt(page, calls(marker))


def attempt(page: Page, calls: Reading[None]) -> Reading[None]:
    """Read calls. What turns out to be none is words."""
    try:
        yield from calls
        page.give(Kind.WORDS)
    except MalformedError:
        if page.held.strip(SPACE):
            page.give(Kind.WORDS, page.held)
        # White space behind a call is that before the words to come, if any come.
        page.back()


def json_calls(page: Page, offered: Schemas) -> Reading[None]:
    """A call as a JSON object, or an array of them."""
    if not (yield from page.skip("[")):
        yield from json_call(page, offered)
        return
    while True:
        yield from json_call(page, offered)
        if not (yield from page.skip(",")):
            break
    yield from page.skip("]")


def json_call(page: Page, offered: Schemas) -> Reading[None]:
    """A call as a JSON object with its name and its arguments. The name may come last: they wait for it."""
    yield from page.space()
    yield from page.expect("{")
    name, arguments, begun = "", "", False
    while True:
        key = yield from _key(page)
        if key == "name":
            name = _offered((yield from _string(page)), offered)
        elif key not in _ARGUMENTS:
            if key not in _PASSED_OVER:
                raise MalformedError
            yield from _value(page)
        elif name and not begun and (yield from page.next()) == "{":
            begun = True
            yield from call(page, name, offered)
        else:
            arguments = yield from _value(page)
        if not (yield from page.skip(",")):
            break
    yield from page.space()
    yield from page.expect("}")
    if not begun:
        given = _object(arguments)
        page.give(Kind.CALL, _offered(name, offered))
        page.give(Kind.ARGUMENTS, given)
        page.give(Kind.CALL_END)


def call(page: Page, name: str, offered: Schemas) -> Reading[None]:
    """A call whose name was read: its arguments are a JSON object, and given as they come."""
    name = _offered(name.strip(SPACE), offered)
    yield from page.space()
    if (yield from page.next()) != "{":
        raise MalformedError
    page.give(Kind.CALL, name)
    extent = _Extent()
    while (yield from page.more()):
        text = page.unread
        end = extent.end(text)
        page.read(len(text) if end is None else end)
        page.give(Kind.ARGUMENTS, page.held)
        if end is not None:
            page.give(Kind.CALL_END)
            return


def _offered(name: str, offered: Schemas) -> str:
    if name not in offered:
        raise MalformedError
    return name


def _object(arguments: str) -> str:
    """Arguments that were given as JSON, as a JSON text in JSON, or not at all."""
    if not arguments or arguments == "null":
        return "{}"
    if arguments.startswith('"'):
        arguments = _decoded(arguments)
    if not arguments.startswith("{"):
        raise MalformedError
    return arguments


def _key(page: Page) -> Reading[str]:
    yield from page.space()
    key = yield from _string(page)
    yield from page.space()
    yield from page.expect(":")
    yield from page.space()
    return key


def _string(page: Page) -> Reading[str]:
    if (yield from page.next()) != '"':
        raise MalformedError
    return _decoded((yield from _value(page)))


def _decoded(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError as exc:
        raise MalformedError from exc


def _value(page: Page) -> Reading[str]:
    """A whole JSON value, as it is written."""
    if (yield from page.next()) not in ("{", "[", '"'):
        return (yield from _scalar(page))
    extent = _Extent()
    parts: list[str] = []
    while (yield from page.more()):
        text = page.unread
        end = extent.end(text)
        parts.append(text if end is None else text[:end])
        page.read(len(parts[-1]))
        if end is not None:
            return "".join(parts)
    raise MalformedError


def _scalar(page: Page) -> Reading[str]:
    """A number, or one of JSON's three words."""
    text = ""
    while (char := (yield from page.next())) and (char.isalnum() or char in "+-."):
        text += char
        page.read(1)
    if not text:
        raise MalformedError
    return text


class _Extent:
    """Where a JSON value that comes in pieces ends: an object, an array or a string.

    Mutable: `_depth` (how many brackets are open), `_quoted` (within a string), `_skipped` (of the next piece).
    """

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._skipped = 0

    def end(self, text: str) -> int | None:
        """How much of the next piece is the value's; None if all of it is and more is to come."""
        at = self._skipped
        while found := _SIGNS.search(text, at):
            at = found.end()
            self._pass(found[0])
            if self._quoted and found[0] == "\\":
                # Whatever comes next, it ends no string.
                at += 1
            if not self._quoted and not self._depth:
                return at
        self._skipped = max(0, at - len(text))
        return None

    def _pass(self, sign: str) -> None:
        if sign == '"':
            self._quoted = not self._quoted
        elif not self._quoted and sign in "{[":
            self._depth += 1
        elif not self._quoted and sign in "}]":
            self._depth -= 1
