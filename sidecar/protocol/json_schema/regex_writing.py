"""Regular expressions written anew, for a whole answer or for the text of a JSON string; see `regex`."""

from typing import Final

from sidecar.protocol.json_schema.regex import (
    SURROGATES,
    Anchor,
    Chars,
    Either,
    Node,
    Ranges,
    RegexError,
    Repeat,
    Sequence,
    complement,
    parsed,
)

# What a JSON string must escape: control characters, the quote and the backslash (RFC 8259, section 7).
_CONTROLS: Final = (0x00, 0x1F)
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_SHORT_ESCAPES: Final = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", _QUOTE: '"', _BACKSLASH: "\\"}
# Of a repeated group that is written out, so many in all: the compiler follows a counted group slowly, at every token.
_MOST_WRITTEN: Final = 2048
_ANYTHING: Final = Repeat(Chars(complement((SURROGATES,))), 0, None)


def for_answer(pattern: str) -> str:
    """The pattern for a whole answer. Raises RegexError."""
    return _written(_whole(parsed(pattern), open_ends=False), in_string=False)


def for_string(pattern: str, *, bounded: bool = True) -> tuple[str, int, int | None]:
    """The pattern for what stands between the quotes of a JSON string, and how many characters the string then has:
    at least, and at most (None: without end). `bounded`: it comes from a client. Raises RegexError.
    """
    node = _whole(parsed(pattern, bounded=bounded), open_ends=True)
    return _written(node, in_string=True), *_lengths(node)


def _whole(node: Node, *, open_ends: bool) -> Node:
    """The same without anchors. `open_ends`: where one end alone is anchored the other is open."""
    branches = node.branches if isinstance(node, Either) else (node,)
    found: list[Node] = []
    for branch in branches:
        parts = list(branch.parts) if isinstance(branch, Sequence) else [branch]
        inner = [part for part in parts if not isinstance(part, Anchor)]
        first = next((at for at, part in enumerate(parts) if not _is_start(part)), len(parts))
        last = next((at for at in range(len(parts), first, -1) if not _is_end(parts[at - 1])), first)
        if any(_has_anchor(part) for part in parts[first:last]):
            raise RegexError("an anchor that is neither at the beginning nor at the end of an alternative")
        starts, ends = first > 0, last < len(parts)
        if open_ends and starts != ends:
            inner = [*inner, _ANYTHING] if starts else [_ANYTHING, *inner]
        found.append(Sequence(tuple(inner)))
    return Either(tuple(found))


def _is_start(node: Node) -> bool:
    return isinstance(node, Anchor) and node.start


def _is_end(node: Node) -> bool:
    return isinstance(node, Anchor) and not node.start


def _has_anchor(node: Node) -> bool:
    match node:
        case Anchor():
            return True
        case Sequence(parts) | Either(parts):
            return any(_has_anchor(part) for part in parts)
        case Repeat(part):
            return _has_anchor(part)
    return False


def _lengths(node: Node) -> tuple[int, int | None]:
    """How many characters the texts have that it matches: at least, and at most (None: without end)."""
    match node:
        case Sequence(parts):
            each = [_lengths(part) for part in parts]
            mosts = [most for _, most in each if most is not None]
            return sum(least for least, _ in each), sum(mosts) if len(mosts) == len(each) else None
        case Either(branches):
            each = [_lengths(branch) for branch in branches]
            mosts = [most for _, most in each if most is not None]
            return min(least for least, _ in each), max(mosts) if len(mosts) == len(each) else None
        case Repeat(part, least, most):
            low, high = _lengths(part)
            if most == 0 or high == 0:
                return low * least, 0
            return low * least, None if most is None or high is None else high * most
        case Chars():
            return 1, 1
    return 0, 0


def _written(node: Node, *, in_string: bool, counted: bool = False) -> str:
    """`counted`: it stands in a repetition with bounds."""
    match node:
        case Chars(ranges):
            return _class_in_string(ranges, counted=counted) if in_string else _class_written(ranges)
        case Sequence(parts):
            return "".join(_written(part, in_string=in_string, counted=counted) for part in parts)
        case Either(branches):
            written = (_written(branch, in_string=in_string, counted=counted) for branch in branches)
            return "(?:" + "|".join(written) + ")"
        case Repeat():
            return _repeat_written(node, in_string=in_string, counted=counted)
    raise RegexError("an anchor in a group that is repeated or stands alone")


def _repeat_written(node: Repeat, *, in_string: bool, counted: bool) -> str:
    least, most = node.least, node.most
    bounded = counted or least > 1 or (most is not None and most > 1)
    part = _written(node.part, in_string=in_string, counted=bounded)
    if isinstance(node.part, Chars) and not part.startswith("(?:"):
        return f"{part}{{{least},{'' if most is None else most}}}"
    # Not `(?:…)?`: xgrammar 0.2 takes what ends in a repetition for one that may begin in it.
    group = f"(?:{part})"
    optional = 0 if most is None else most - least
    if len(group) * (least + optional) > _MOST_WRITTEN * 8 or least + optional > _MOST_WRITTEN:
        raise RegexError("a group is repeated too often; repeat single characters or classes, or fewer times")
    if most is None:
        return group * least + f"{group}*"
    return group * least + f"(?:{part}" * optional + "|)" * optional


def _class_in_string(ranges: Ranges, *, counted: bool) -> str:
    """A character as a JSON string writes it. Control characters only where nothing else is asked for.

    In a counted repetition one character is to be one character: what must be escaped is left out there, too.
    """
    plain = _without(ranges, (_CONTROLS, (_QUOTE, _QUOTE), (_BACKSLASH, _BACKSLASH)))
    choices = [_class_written(plain)] if plain else []
    escaped = [code for code in (_QUOTE, _BACKSLASH) if _holds(ranges, code)]
    if plain and counted:
        escaped = []
    elif not plain and not escaped:
        escaped = [code for code in range(_CONTROLS[1] + 1) if _holds(ranges, code)]
    choices += [_escape_written(code) for code in escaped]
    return choices[0] if plain and len(choices) == 1 else "(?:" + "|".join(choices) + ")"


def _escape_written(code: int) -> str:
    short = _SHORT_ESCAPES.get(code)
    text = f"\\u{code:04x}" if short is None else f"\\{short}"
    return "".join(_class_written(((ord(char), ord(char)),)) for char in text)


def _class_written(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char_written(ranges[0][0])
    written = (_char_written(low) + ("" if low == high else "-" + _char_written(high)) for low, high in ranges)
    return "[" + "".join(written) + "]"


def _char_written(code: int) -> str:
    """A character as any regular expression may have it, in a class and outside."""
    char = chr(code)
    if char.isalnum() or code > 0x9F:
        return char
    # Not `\\x..`: xgrammar 0.2 reads as many hexadecimal digits as there are.
    return f"\\u{code:04x}"


def _without(ranges: Ranges, others: Ranges) -> Ranges:
    return complement((*complement(ranges), *others))


def _holds(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)
