"""Regular expressions of clients, read and written anew: for a whole answer, or for the text of a JSON string.

What is read is what ECMA-262 and Python share, over code points: literals, classes, `.`, groups, alternatives and
repetitions; what looks around, back or at words is refused, for no grammar can follow it. Pure.

A pattern matches a whole text. JSON Schema's may match a part of one; of what that allows, this is the part that has
nothing before and behind, unless one end alone is anchored: then the other is open (`^https://`).
"""

from dataclasses import dataclass
from typing import Final

MOST_CHARS: Final = 512  # GUARDS, C5
MOST_TIMES: Final = 4096
_DEEPEST: Final = 64
_LAST: Final = 0x10FFFF
SURROGATES: Final = (0xD800, 0xDFFF)
_ESCAPED: Final = {"n": 0x0A, "t": 0x09, "r": 0x0D, "f": 0x0C, "v": 0x0B, "0": 0x00}
_DIGITS: Final = ((0x30, 0x39),)
_WORDS: Final = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: Final = ((0x09, 0x0D), (0x20, 0x20))
_LINE_ENDS: Final = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_HEX_DIGITS: Final = {"x": 2, "u": 4}

Ranges = tuple[tuple[int, int], ...]


class RegexError(ValueError):
    """The pattern is wrong, or cannot be followed; the text says what and where."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of ranges of code points, ascending and apart."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning of the text, or its end."""

    start: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Either:
    branches: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`most` of None: without end."""

    part: "Node"
    least: int
    most: int | None


Node = Chars | Anchor | Sequence | Either | Repeat


def complement(ranges: Ranges) -> Ranges:
    """All other code points that can stand in a text."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in _joined((*ranges, SURROGATES)):
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    if start <= _LAST:
        found.append((start, _LAST))
    return tuple(found)


class _Reader:
    """Recursive descent over one pattern. Mutable: `_at`, `_depth`."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def read(self) -> Node:
        node = self._either()
        if self._at < len(self._pattern):
            raise self._wrong("a ')' without its '('")
        return node

    def _either(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong("groups are nested too deep")
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        self._depth -= 1
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self) -> Node:
        part = self._single()
        times = self._times()
        if times is None:
            return part
        if isinstance(part, Anchor):
            raise self._wrong("an anchor cannot be repeated")
        # How eagerly it repeats does not change what it matches.
        self._take("?")
        if self._peek() in ("*", "+") or self._times() is not None:
            raise self._wrong("a repetition of a repetition")
        return Repeat(part, *times)

    def _times(self) -> tuple[int, int | None] | None:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return times
        end = self._pattern.find("}", self._at)
        if self._peek() != "{" or end < 0:
            return None
        least, comma, most = self._pattern[self._at + 1 : end].partition(",")
        if not _is_count(least) or not (not most or _is_count(most)):
            raise self._wrong("a '{' that is no repetition; write '\\{' for the character")
        self._at = end + 1
        low, high = int(least), int(most) if most else None if comma else int(least)
        if max(low, high or 0) > MOST_TIMES:
            raise self._wrong(f"more than {MOST_TIMES} repetitions")
        if high is not None and high < low:
            raise self._wrong("a repetition whose most is less than its least")
        return low, high

    def _single(self) -> Node:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return Chars(complement(_LINE_ENDS))
            case "^" | "$":
                return Anchor(char == "^")
            case "*" | "+" | "?":
                raise self._wrong(f"nothing before '{char}' to repeat")
            case "\\":
                return Chars(self._escape())
        return _char(ord(char))

    def _group(self) -> Node:
        if self._take("?"):
            if self._take("P<") or (self._peek() == "<" and self._pattern[self._at + 1 : self._at + 2] not in "=!"):
                end = self._pattern.find(">", self._at)
                if end < 0:
                    raise self._wrong("a group's name without its end")
                self._at = end + 1
            elif not self._take(":"):
                raise self._wrong("looking around, flags and conditions are not supported")
        node = self._either()
        if not self._take(")"):
            raise self._wrong("a '(' without its ')'")
        return node

    def _class(self) -> Node:
        negated = self._take("^")
        found: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            single = len(low) == 1 and low[0][0] == low[0][1]
            if single and self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._next()
                high = self._member()
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise self._wrong("a range in a class whose ends are wrong")
                low = ((low[0][0], high[0][0]),)
            found += low
        ranges = complement(tuple(found)) if negated else _joined(tuple(found))
        if not ranges:
            raise self._wrong("a class without any character")
        return Chars(ranges)

    def _member(self) -> Ranges:
        char = self._next()
        if char != "\\":
            return ((ord(char), ord(char)),)
        if self._take("b"):
            return ((0x08, 0x08),)
        return self._escape()

    def _escape(self) -> Ranges:
        char = self._next()
        for name, ranges in (("d", _DIGITS), ("w", _WORDS), ("s", _SPACES)):
            if char.lower() == name:
                return ranges if char == name else complement(ranges)
        if char in _HEX_DIGITS:
            digits = self._pattern[self._at : self._at + _HEX_DIGITS[char]]
            self._at += len(digits)
            if len(digits) < _HEX_DIGITS[char] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise self._wrong(f"'\\{char}' without its {_HEX_DIGITS[char]} hexadecimal digits")
            code = int(digits, 16)
            if SURROGATES[0] <= code <= SURROGATES[1]:
                raise self._wrong("half of a surrogate pair; write the character itself")
            return ((code, code),)
        if char in _ESCAPED and not (char == "0" and self._peek().isdigit()):
            return ((_ESCAPED[char], _ESCAPED[char]),)
        if char.isascii() and char.isalnum():
            raise self._wrong(f"'\\{char}' is not supported")
        return ((ord(char), ord(char)),)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise self._wrong("it ends too early")
        self._at += 1
        return char

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        if found:
            self._at += len(text)
        return found

    def _wrong(self, what: str) -> RegexError:
        return RegexError(f"{what} (at character {self._at} of the pattern)")


def parsed(pattern: str, *, bounded: bool = True) -> Node:
    if bounded and len(pattern) > MOST_CHARS:
        raise RegexError(f"a pattern may have {MOST_CHARS} characters at most")
    return _Reader(pattern).read()


def _char(code: int) -> Chars:
    return Chars(((code, code),))


def _joined(ranges: Ranges) -> Ranges:
    """The same code points, ascending and apart."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
