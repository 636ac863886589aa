"""A small vocabulary, random schemas that are within the documented subset, and a model that says anything allowed."""

import random
from typing import Any, Final

import numpy as np

from sidecar.engine.grammars import Constraint
from sidecar.wire.grammars import Vocabulary

STOP: Final = 0
_WORDS: Final = (
    b'{"',
    b'":',
    b'": ',
    b'",',
    b'", "',
    b'"}',
    b"true",
    b"null",
    b"12",
    b"ab",
    b"the ",
    b"\xc3\xa9",
    b"\\u00",
)
# Each byte, some words of several, and an end that is no text.
VOCABULARY: Final = Vocabulary([b"", *(bytes([byte]) for byte in range(256)), *_WORDS], [STOP])
_NAMES: Final = ("a", "b", "name", "é", 'q"x', "a b", "$ref", "\\")
_CLOSING: Final = tuple(VOCABULARY.tokens.index(token) for token in (b'"', b"}", b"]", b'"}'))
# After so many tokens it comes to an end where it may.
_TALKATIVE: Final = 40


def say(constraint: Constraint, choose: random.Random, most: int = 400) -> bytes | None:
    """What a model says that picks any token it may; None if it is not done after `most` of them."""
    said = b""
    for count in range(most):
        mask = constraint.masks(())[0].numpy()
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little", count=len(VOCABULARY.tokens))
        allowed = [int(token) for token in np.flatnonzero(bits)]
        assert allowed, said
        closing = [token for token in allowed if token == STOP or (token in _CLOSING and count > _TALKATIVE)]
        token = choose.choice(closing if closing and choose.random() < 0.7 else allowed)
        if constraint.take(token):
            assert token == STOP
            return said
        said += VOCABULARY.tokens[token]
    return None


def random_schema(choose: random.Random, depth: int = 0) -> dict[str, Any]:
    """Within the documented subset."""
    makers = [_string, _number, _integer, _enum, lambda _: {"type": choose.choice(["boolean", "null"])}, _types]
    if depth < 3:
        makers += [lambda one: _object(one, depth), lambda one: _array(one, depth), lambda one: _any_of(one, depth)]
        makers += [lambda one: _object(one, depth), lambda one: _one_of(one, depth), lambda one: _all_of(one, depth)]
    if depth == 0:
        makers += [_recursive, lambda one: _object(one, depth), lambda one: _map(one, depth)]
    schema: dict[str, Any] = choose.choice(makers)(choose)
    return schema | ({"title": "T", "description": "d"} if choose.random() < 0.2 else {})


def _string(choose: random.Random) -> dict[str, Any]:
    form: dict[str, Any] = choose.choice(
        [
            {},
            {"maxLength": choose.randint(0, 12)},
            {"minLength": 2, "maxLength": choose.randint(2, 8)},
            {"minLength": choose.randint(1, 4)},
            {"pattern": choose.choice(PATTERNS)},
            {
                "format": choose.choice(
                    ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname"]
                )
            },
        ]
    )
    return {"type": "string", **form}


PATTERNS: Final = (
    "^[A-Z]{2}[0-9]{1,3}$",
    "a.c",
    '^"\\\\$',
    "^https://",
    "^[a-z]{1,4}\\.(png|jpe?g)$",
    "^(ab|c){2,3}$",
    "[^a-z]+",
    "^\\s*\\w+\\s?$",
    "^$",
    "é{2,}",
    "^[\\t\\n]$",
)


def _number(choose: random.Random) -> dict[str, Any]:
    low = choose.choice([-1000, -2.5, -1, 0, 0.125, 3, 1e6])
    bounds: list[dict[str, Any]] = [
        {},
        {"minimum": low},
        {"exclusiveMinimum": low},
        {"maximum": low},
        {"exclusiveMaximum": low},
        {"minimum": low, "maximum": low + choose.choice([0, 0.5, 7, 1000])},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + choose.choice([0.25, 1, 50])},
    ]
    return {"type": "number", **choose.choice(bounds)}


def _integer(choose: random.Random) -> dict[str, Any]:
    low = choose.randint(-300, 300)
    bounds: list[dict[str, Any]] = [
        {},
        {"minimum": low - 0.5},
        {"maximum": low},
        {"exclusiveMinimum": low, "maximum": low + choose.randint(1, 200)},
        {"minimum": low, "exclusiveMaximum": low + choose.randint(1, 3000)},
    ]
    return {"type": "integer", **choose.choice(bounds)}


def _enum(choose: random.Random) -> dict[str, Any]:
    values = ["red", "é", 'a"b\\c\n', 1, -2.5, True, None, {"k": [1, "x"]}, [], ""]
    if choose.random() < 0.3:
        return {"const": choose.choice(values)}
    return {"enum": choose.sample(values, choose.randint(1, 5))}


def _types(choose: random.Random) -> dict[str, Any]:
    kinds = choose.sample(["string", "integer", "number", "boolean", "null", "object", "array"], choose.randint(2, 3))
    return {"type": kinds}


def _object(choose: random.Random, depth: int) -> dict[str, Any]:
    names = choose.sample(_NAMES, choose.randint(0, 4))
    schema: dict[str, Any] = {"type": "object"}
    if names:
        schema["properties"] = {name: random_schema(choose, depth + 1) for name in names}
    if choose.random() < 0.7:
        schema["required"] = choose.sample(names, choose.randint(0, len(names)))
    extra = choose.random()
    if extra < 0.6:
        schema["additionalProperties"] = False
        if names and choose.random() < 0.3:
            schema["minProperties"] = choose.randint(0, len(names))
    elif extra < 0.7 and not names:
        schema["additionalProperties"] = random_schema(choose, depth + 1)
        schema["maxProperties"] = choose.randint(0, 4)
    return schema


def _map(choose: random.Random, depth: int) -> dict[str, Any]:
    value = random_schema(choose, depth + 1)
    if choose.random() < 0.5:
        return {"type": "object", "patternProperties": {"^[a-c]{1,2}$": value}, "additionalProperties": False}
    return {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": value, "minProperties": 1}


def _array(choose: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    prefix = choose.randint(0, 2) if choose.random() < 0.4 else 0
    if prefix:
        schema["prefixItems"] = [random_schema(choose, depth + 1) for _ in range(prefix)]
    kind = choose.random()
    if kind < 0.7:
        schema["items"] = random_schema(choose, depth + 1)
        schema["minItems"] = choose.randint(0, 3)
        schema["maxItems"] = schema["minItems"] + choose.randint(0, 3)
    elif kind < 0.8 and prefix:
        schema["items"] = False
    return schema


def _any_of(choose: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(choose, depth + 1) for _ in range(choose.randint(1, 3))]}


def _one_of(choose: random.Random, depth: int) -> dict[str, Any]:
    """A union that is told apart by a constant, as pydantic writes it."""
    branches = [
        {
            "type": "object",
            "properties": {"kind": {"const": kind}, "value": random_schema(choose, depth + 1)},
            "required": ["kind"],
            "additionalProperties": False,
        }
        for kind in ("cat", "dog", 3)
    ]
    return {"oneOf": branches, "discriminator": {"propertyName": "kind"}}


def _all_of(choose: random.Random, depth: int) -> dict[str, Any]:
    one = {"type": "object", "properties": {"a": random_schema(choose, depth + 1)}, "required": ["a"]}
    other = {"properties": {"b": random_schema(choose, depth + 1), "a": {"description": "the same"}}, "required": ["b"]}
    return {"allOf": [one, other], "type": "object"}


def _recursive(choose: random.Random) -> dict[str, Any]:
    node = {
        "type": "object",
        "properties": {
            "value": random_schema(choose, 3),
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}
