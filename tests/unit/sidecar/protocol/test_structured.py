"""The fields that give an answer its form: good, boundary and wrong values, on chats and completions alike."""

import json
from typing import Any

import pytest

from sidecar.protocol.chat import read_chat
from sidecar.protocol.completions import read_completion
from sidecar.protocol.fields import decode_object
from sidecar.protocol.requests import Options
from sidecar.protocol.structured import MAX_CHOICES
from sidecar.settings import Api
from sidecar.wire.errors import ApiError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def read(fields: dict[str, Any], api: Api | None = None) -> Options:
    chat = decode_object(json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}).encode())
    text = decode_object(json.dumps({"model": "m", "prompt": "a", **fields}).encode())
    options = read_chat(chat, api or Api()).options
    assert read_completion(text, api or Api()).options.grammar == options.grammar
    return options


def source(fields: dict[str, Any]) -> tuple[str, str, str]:
    grammar = read(fields).grammar
    assert grammar is not None
    return grammar.kind.value, grammar.source, grammar.param


def refused(fields: dict[str, Any]) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as refusal:
        read(fields)
    assert refusal.value.status == 400
    return refusal.value.param, refusal.value.code


def json_schema(schema: object = SCHEMA, **others: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **others}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
        {"guided_json": None},
    ],
)
def test_what_asks_for_no_form_gives_none(fields: dict[str, Any]) -> None:
    assert read(fields).grammar is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (json_schema(), "response_format"),
        (json_schema(strict=True, description="d"), "response_format"),
        (json_schema(strict=None), "response_format"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json"),
        ({"guided_json": SCHEMA}, "guided_json"),
    ],
)
def test_a_schema_is_a_schema_wherever_it_stands(fields: dict[str, Any], param: str) -> None:
    kind, text, told = source(fields)
    assert (kind, told) == ("json_schema", param)
    assert json.loads(text)["properties"] == SCHEMA["properties"]


def test_a_json_object_has_any_names() -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        assert json.loads(source(fields)[1])["additionalProperties"] == {}


@pytest.mark.parametrize("name", ["structured_outputs", "guided"])
def test_patterns_choices_and_grammars(name: str) -> None:
    def fields(kind: str, value: object) -> dict[str, Any]:
        return {f"guided_{kind}": value} if name == "guided" else {name: {kind: value}}

    assert source(fields("regex", "a|b"))[:2] == ("regex", "(?:a|b)")
    assert source(fields("choice", ['say "yes"', "no", "no"]))[:2] == ("ebnf", 'root ::= "say \\"yes\\"" | "no"')
    assert source(fields("grammar", 'root ::= "a"'))[:2] == ("ebnf", 'root ::= "a"')
    path = (lambda kind: f"guided_{kind}") if name == "guided" else (lambda kind: f"{name}.{kind}")
    assert refused(fields("regex", "(")) == (path("regex"), "invalid_value")
    assert refused(fields("regex", "a" * 513)) == (path("regex"), "string_above_max_length")
    assert refused(fields("regex", 3)) == (path("regex"), "invalid_type")
    assert refused(fields("choice", [])) == (path("choice"), "empty_array")
    assert refused(fields("choice", ["a"] * (MAX_CHOICES + 1))) == (path("choice"), "array_above_max_length")
    assert refused(fields("choice", ["a", ""])) == (f"{path('choice')}[1]", "invalid_value")
    assert refused(fields("choice", "a")) == (path("choice"), "invalid_type")
    assert refused(fields("grammar", "x" * 65537)) == (path("grammar"), "string_above_max_length")
    assert refused(fields("json", "{")) == (path("json"), "invalid_value")
    assert refused(fields("json", 3)) == (path("json"), "invalid_type")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (json_schema(None), "response_format.json_schema.schema", "missing_required_parameter"),
        (json_schema(name=None), "response_format.json_schema.name", "missing_required_parameter"),
        (json_schema(name="a b"), "response_format.json_schema.name", "invalid_value"),
        (json_schema(name="n" * 65), "response_format.json_schema.name", "invalid_value"),
        (json_schema(strict="yes"), "response_format.json_schema.strict", "invalid_type"),
        (json_schema(extra=1), "response_format.json_schema.extra", "unknown_parameter"),
        (json_schema([]), "response_format.json_schema.schema", "invalid_type"),
        (json_schema({"not": {}}), "response_format", "invalid_json_schema"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object", "invalid_type"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "unknown_parameter"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "invalid_value"),
        ({**json_schema(), "structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "invalid_value"),
        ({**json_schema(), "min_tokens": 1}, "min_tokens", "invalid_value"),
        ({**json_schema(), "bad_words": ["a"]}, "bad_words", "invalid_value"),
        ({**json_schema(), "allowed_token_ids": [1]}, "allowed_token_ids", "invalid_value"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    assert refused(fields) == (param, code)


def test_unknown_fields_of_a_format_are_told_where_they_may_pass() -> None:
    options = read({**json_schema(extra=1), "structured_outputs": {"x": 1}}, Api(unknown_fields="ignore"))
    assert set(options.ignored) == {"response_format.json_schema.extra", "structured_outputs.x"}
