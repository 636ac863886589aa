"""From nodes to the plain values that a msgspec type takes, with every problem on the way.

The types that settings and policies use: Structs, dictionaries with text keys, lists, unions of scalars, literals,
numbers and text with their bounds. A type outside these is a mistake of the programmer and raises TypeError.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Final

from msgspec import inspect

from sidecar.yamlfile.nodes import Mapping, Node, Problem, Scalar, Sequence
from sidecar.yamlfile.scalars import Kind, Reading, classify, show

_LISTS: Final = (inspect.ListType, inspect.VarTupleType, inspect.FrozenSetType, inspect.SetType)
_MAPPINGS: Final = (inspect.StructType, inspect.DictType)
_SCALARS: Final = (
    inspect.IntType,
    inspect.FloatType,
    inspect.BoolType,
    inspect.StrType,
    inspect.LiteralType,
    inspect.NoneType,
)


class Walk:
    """One pass over a document. Mutable: `problems`, what was found so far."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def convert(self, node: Node, type_: inspect.Type) -> object:
        """The value for `msgspec.convert`; of no meaning where a problem was noted."""
        choices = alternatives(type_)
        if isinstance(node, Mapping):
            for choice in choices:
                if isinstance(choice, inspect.StructType):
                    return self._struct(node, choice)
                if isinstance(choice, inspect.DictType):
                    return self._dictionary(node, choice)
            self._note(node, f"expected {describe(choices)}, but this is a mapping")
        elif isinstance(node, Sequence):
            for choice in choices:
                if isinstance(choice, _LISTS):
                    return self._list(node, choice)
            self._note(node, f"expected {describe(choices)}, but this is a list")
        elif isinstance(node, Scalar):
            return self._scalar(node, choices)
        return None

    def _struct(self, node: Mapping, type_: inspect.StructType) -> dict[str, object]:
        fields = {field.encode_name: field for field in type_.fields}
        found: dict[str, object] = {}
        broken = False
        for key, value in node.entries:
            if not isinstance(key, Scalar):
                broken = True
            elif key.text in fields:
                found[key.text] = self.convert(value, fields[key.text].type)
            elif type_.forbid_unknown_fields:
                self._note(key, f"unknown field '{show(key.text)}'{_did_you_mean(key.text, list(fields))}")
        missing = [name for name, field in fields.items() if field.required and name not in found]
        # Where a key could not be read, it may have been the missing one.
        if missing and not broken:
            names = ", ".join(f"'{name}'" for name in missing)
            self._note(node, f"missing field{'s' if len(missing) > 1 else ''} {names}")
        return found

    def _dictionary(self, node: Mapping, type_: inspect.DictType) -> dict[object, object]:
        _check_size(self, node, len(node.entries), type_)
        key_types = alternatives(type_.key_type)
        return {
            self._scalar(key, key_types): self.convert(value, type_.value_type)
            for key, value in node.entries
            if isinstance(key, Scalar)
        }

    def _list(
        self,
        node: Sequence,
        type_: inspect.ListType | inspect.VarTupleType | inspect.FrozenSetType | inspect.SetType,
    ) -> list[object]:
        _check_size(self, node, len(node.items), type_)
        return [self.convert(item, type_.item_type) for item in node.items]

    def _scalar(self, node: Scalar, choices: list[inspect.Type]) -> object:
        reading = classify(node.text) if node.plain else Reading(Kind.TEXT, node.text)
        fitting = [choice for choice in choices if _takes(choice, reading)]
        if not fitting and node.loose and any(isinstance(choice, inspect.StrType) for choice in choices):
            reading = Reading(Kind.TEXT, node.text)
            fitting = [choice for choice in choices if _takes(choice, reading)]
        if any(_allows(choice, reading) for choice in fitting):
            return reading.value
        if len(fitting) == 1 and isinstance(fitting[0], inspect.StrType):
            self._note(node, _text_refusal(fitting[0], node.text))
        else:
            self._note(node, _unfit(node, reading, choices))
        return None

    def _note(self, node: Node, message: str) -> None:
        self.problems.append(node.problem(message))


def alternatives(type_: inspect.Type) -> list[inspect.Type]:
    """The types a value may have; one, unless it is a union. Raises TypeError for what is not supported here."""
    if isinstance(type_, inspect.Metadata):
        return alternatives(type_.type)
    if isinstance(type_, inspect.UnionType):
        return [choice for inner in type_.types for choice in alternatives(inner)]
    if not isinstance(type_, (*_LISTS, *_MAPPINGS, *_SCALARS)):
        raise TypeError(f"{type_} cannot be read from YAML here")
    return [type_]


def describe(choices: list[inspect.Type]) -> str:
    """What is expected, in words."""
    words = [word for choice in choices for word in _words(choice)]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _words(choice: inspect.Type) -> Iterator[str]:
    match choice:
        case inspect.LiteralType():
            yield from (str(value) for value in choice.values)
        case inspect.IntType():
            yield f"a whole number{_bounds(choice)}"
        case inspect.FloatType():
            yield f"a number{_bounds(choice)}"
        case inspect.BoolType():
            yield "true or false"
        case inspect.StrType():
            yield "text"
        case inspect.NoneType():
            yield "null"
        case inspect.StructType() | inspect.DictType():
            yield "a mapping"
        case _:
            yield "a list"


def _bounds(choice: inspect.IntType | inspect.FloatType) -> str:
    if choice.ge is not None and choice.le is not None:
        return f" from {choice.ge} to {choice.le}"
    words = [
        f"{word} {bound}"
        for word, bound in (("≥", choice.ge), (">", choice.gt), ("≤", choice.le), ("<", choice.lt))
        if bound is not None
    ]
    return "".join([" ", " and ".join(words)]) if words else ""


_KINDS: Final[dict[type[inspect.Type], frozenset[Kind]]] = {
    inspect.IntType: frozenset({Kind.INTEGER}),
    inspect.FloatType: frozenset({Kind.INTEGER, Kind.DECIMAL}),
    inspect.BoolType: frozenset({Kind.BOOLEAN}),
    inspect.StrType: frozenset({Kind.TEXT}),
    inspect.NoneType: frozenset({Kind.NOTHING}),
}


def _takes(choice: inspect.Type, reading: Reading) -> bool:
    """Whether a scalar of this kind can be a value of this type, bounds aside."""
    if isinstance(choice, inspect.LiteralType):
        return reading.kind in {Kind.INTEGER if isinstance(value, int) else Kind.TEXT for value in choice.values}
    return reading.kind in _KINDS.get(type(choice), ())


def _allows(choice: inspect.Type, reading: Reading) -> bool:
    """Whether a value of the right kind is within the type's bounds."""
    value = reading.value
    match choice:
        case inspect.LiteralType():
            return value in choice.values
        case inspect.IntType() | inspect.FloatType() if isinstance(value, int | float):
            return _within(choice, value)
        case inspect.StrType():
            return not _text_refusal(choice, str(value))
        case _:
            return True


def _within(choice: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (
        (choice.ge is None or value >= choice.ge)
        and (choice.gt is None or value > choice.gt)
        and (choice.le is None or value <= choice.le)
        and (choice.lt is None or value < choice.lt)
    )


def _text_refusal(choice: inspect.StrType, text: str) -> str:
    """Why a text is not allowed; empty if it is."""
    if len(text) < (choice.min_length or 0):
        return f"must have at least {_count(choice.min_length or 0, 'character')}"
    if choice.max_length is not None and len(text) > choice.max_length:
        return f"must have at most {_count(choice.max_length, 'character')}, has {len(text)}"
    if choice.pattern is not None and not re.search(choice.pattern, text):
        return f"'{show(text)}' does not match {choice.pattern}"
    return ""


def _unfit(node: Scalar, reading: Reading, choices: list[inspect.Type]) -> str:
    """The message for a scalar that no alternative takes."""
    if reading.kind is Kind.NOTHING:
        got = "there is nothing here"
    elif not node.plain:
        got = f"got the text '{show(node.text)}' in quotes"
    else:
        got = f"got {show(node.text)}"
    message = f"expected {describe(choices)}, {got}"
    literals = [str(v) for choice in choices if isinstance(choice, inspect.LiteralType) for v in choice.values]
    meant = _did_you_mean(node.text, literals)
    hint = reading.hint
    if not hint and any(isinstance(choice, inspect.StrType) for choice in choices) and reading.kind is not Kind.NOTHING:
        hint = "put text that looks like something else in quotes"
    if not node.plain and _fits_unquoted(node, choices):
        hint = "take the quotes away"
    return f"{message}{meant}" + (f" ({hint})" if hint else "")


def _fits_unquoted(node: Scalar, choices: list[inspect.Type]) -> bool:
    reading = classify(node.text)
    return any(_takes(choice, reading) for choice in choices)


def _check_size(
    walk: Walk,
    node: Node,
    size: int,
    type_: inspect.ListType | inspect.VarTupleType | inspect.FrozenSetType | inspect.SetType | inspect.DictType,
) -> None:
    if size < (type_.min_length or 0):
        walk.problems.append(node.problem(f"must have at least {_count(type_.min_length or 0, 'entry')}"))
    if type_.max_length is not None and size > type_.max_length:
        walk.problems.append(node.problem(f"must have at most {_count(type_.max_length, 'entry')}, has {size}"))


def _count(number: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"


def _did_you_mean(text: str, names: list[str]) -> str:
    close = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.7)
    return f"; did you mean '{close[0]}'?" if close and close[0] != text else ""
