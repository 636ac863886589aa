"""What form an answer is to have: OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*`.

At most one of them, and it becomes a `Grammar` that the whole answer follows.
"""

import json
import re
from collections.abc import Callable
from typing import Final

import msgspec

from sidecar.protocol.fields import (
    Fields,
    as_text,
    check_length,
    invalid_value,
    missing,
    not_one_of,
    too_long,
    wrong_type,
)
from sidecar.protocol.json_schema.normalise import MOST_BYTES, normalise
from sidecar.protocol.json_schema.regex import MOST_CHARS, RegexError
from sidecar.protocol.json_schema.regex_writing import for_answer
from sidecar.protocol.json_schema.values import SchemaError
from sidecar.wire.errors import bad_request
from sidecar.wire.grammars import Grammar, GrammarKind

FORMATS: Final = ("text", "json_object", "json_schema")
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_CHOICES: Final = 1024
_ANY_OBJECT: Final[dict[str, object]] = {"type": "object"}

Unknown = Callable[[Fields], list[str]]
Reader = Callable[[object, str], Grammar | None]


def read_grammar(fields: Fields, unknown: Unknown) -> tuple[Grammar | None, list[str]]:
    """The grammar of an answer, if it is to have one, and the fields in it that are unknown and may pass."""
    found: dict[str, Grammar] = {}
    ignored: list[str] = []
    form = fields.object("response_format")
    if form is not None and (grammar := read_format(form, "json_schema", unknown, ignored)) is not None:
        found["response_format"] = grammar
    outputs = fields.object("structured_outputs")
    if outputs is not None:
        for name, read in _OUTPUTS.items():
            given = outputs.value(name)
            if given is not None and (grammar := read(given, outputs.path(name))) is not None:
                found[outputs.path(name)] = grammar
        ignored += unknown(outputs)
    for name, read in _GUIDED.items():
        given = fields.value(name)
        if given is not None and (grammar := read(given, name)) is not None:
            found[name] = grammar
    if len(found) > 1:
        first, second, *_ = found
        raise bad_request(
            f"'{first}' and '{second}' are both given; an answer has one form.", param=second, code="invalid_value"
        )
    return next(iter(found.values()), None), ignored


def read_format(form: Fields, wrapper: str, unknown: Unknown, ignored: list[str]) -> Grammar | None:
    """A format as OpenAI's endpoints have it: `wrapper` is the field of it that has the schema's fields; "" where they
    stand in the format itself.
    """
    kind = form.required_text("type")
    if kind not in FORMATS:
        raise not_one_of(kind, FORMATS, form.path("type"))
    grammar: Grammar | None = None
    if kind == "json_object":
        grammar = json_schema(form.value("schema") or _ANY_OBJECT, form.path("schema"), form.path())
    elif kind == "json_schema":
        schema = form.object(wrapper) if wrapper else form
        if schema is None:
            raise missing(form.path(wrapper))
        grammar = _named_schema(schema, form.path())
        if wrapper:
            ignored += unknown(schema)
    ignored += unknown(form)
    return grammar


def json_schema(schema: object, path: str, param: str) -> Grammar:
    """Raises ApiError 400 that says what of the schema is wrong. `param` is the field at fault in that."""
    if not isinstance(schema, dict):
        raise wrong_type(path, "an object", schema)
    try:
        return Grammar(GrammarKind.JSON_SCHEMA, normalise(schema), param)
    except SchemaError as exc:
        raise bad_request(f"Invalid schema for '{param}': {exc}.", param=param, code="invalid_json_schema") from exc


def _named_schema(fields: Fields, param: str) -> Grammar:
    name = fields.required_text("name")
    if not NAME.fullmatch(name):
        raise invalid_value(fields.path("name"), "it must have 1 to 64 letters, digits, '_' or '-'.")
    # Whether it is strict or not, the answer follows it.
    fields.flag("strict")
    fields.text("description")
    schema = fields.value("schema")
    if schema is None:
        raise missing(fields.path("schema"))
    return json_schema(schema, fields.path("schema"), param)


def _json(given: object, path: str) -> Grammar:
    """A schema, or the JSON text of one."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise invalid_value(path, "it is not JSON.") from exc
    return json_schema(given, path, path)


def _json_object(given: object, path: str) -> Grammar | None:
    if not isinstance(given, bool):
        raise wrong_type(path, "a boolean", given)
    return json_schema(_ANY_OBJECT, path, path) if given else None


def _regex(given: object, path: str) -> Grammar:
    pattern = as_text(given, path)
    if len(pattern) > MOST_CHARS:
        raise too_long(path, MOST_CHARS)
    try:
        return Grammar(GrammarKind.REGEX, for_answer(pattern), path)
    except RegexError as exc:
        raise invalid_value(path, f"{exc}.") from exc


def _choice(given: object, path: str) -> Grammar:
    if not isinstance(given, list):
        raise wrong_type(path, "an array", given)
    check_length(given, path, MAX_CHOICES)
    texts = [as_text(choice, f"{path}[{at}]") for at, choice in enumerate(given)]
    for at, text in enumerate(texts):
        if not text:
            raise invalid_value(f"{path}[{at}]", "an empty text is no choice.")
    # Literals of the compiler's EBNF are written as JSON writes strings.
    return _ebnf("root ::= " + " | ".join(json.dumps(text) for text in dict.fromkeys(texts)), path)


def _grammar(given: object, path: str) -> Grammar:
    return _ebnf(as_text(given, path), path)


def _ebnf(source: str, path: str) -> Grammar:
    if len(source.encode()) > MOST_BYTES:
        raise too_long(path, MOST_BYTES)
    return Grammar(GrammarKind.EBNF, source, path)


_OUTPUTS: Final[dict[str, Reader]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
_GUIDED: Final[dict[str, Reader]] = {
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
