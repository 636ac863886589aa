"""What of JSON Schema is taken, what it becomes, and that what no grammar can follow is refused by name."""

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.json_schema.normalise import MOST_DEPTH, SUPPORTED, normalise
from sidecar.protocol.json_schema.values import SchemaError

INTEGER = {"type": "integer"}
# JSON Schema 2020-12, sections 10 and 11 of Core, 6 of Validation, and what earlier drafts had.
FOREIGN = (
    *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "contains", "minContains", "maxContains"),
    *("unevaluatedProperties", "unevaluatedItems", "multipleOf", "$dynamicRef", "$anchor", "additionalItems"),
)


def normal(schema: dict[str, Any]) -> Any:
    return json.loads(normalise(schema))


@pytest.mark.parametrize("name", FOREIGN)
def test_c5_a_keyword_that_cannot_be_followed_is_refused_with_its_place(name: str) -> None:
    assert name not in SUPPORTED
    with pytest.raises(SchemaError, match=re.escape(f"'{name}' is not supported (at #/properties/a)")):
        normalise({"type": "object", "properties": {"a": {name: {}}}})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "text"}, "'type' must be one of"),
        ({"type": []}, "'type' must be one of"),
        ({"enum": []}, "'enum' must be an array"),
        ({"type": "string", "enum": [1]}, "no value of 'enum'"),
        ({"enum": ["a"], "minLength": 2}, "'minLength' beside 'enum'"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number is between"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "no number is between"),
        ({"type": "number", "minimum": "1"}, "'minimum' must be a number"),
        ({"type": "integer", "minimum": 1e300}, "more than 63 bits"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "'maxLength' is less than 'minLength'"),
        ({"type": "string", "minLength": -1}, "'minLength' must be a whole number"),
        ({"type": "string", "pattern": "(?=a)"}, "'pattern': looking around"),
        ({"type": "string", "pattern": "a+", "maxLength": 9}, "'maxLength' beside a 'pattern'"),
        ({"type": "string", "pattern": "a?", "minLength": 1}, "'minLength' beside a 'pattern'"),
        ({"type": "string", "pattern": "a" * 513}, "512 characters at most"),
        ({"type": "string", "format": "iri"}, "the format 'iri' is not supported"),
        ({"type": "string", "format": []}, "is not supported"),
        ({"type": "number", "format": {}}, "is not supported"),
        ({"type": "string", "format": "date", "pattern": "a"}, "'pattern' beside 'format'"),
        ({"type": "string", "minimum": 1}, "'minimum' does not go with the type string"),
        ({"type": "array", "items": [INTEGER]}, "'items' must be one schema"),
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "'uniqueItems' is not supported"),
        ({"type": "array", "prefixItems": [INTEGER], "items": False, "minItems": 2}, "'minItems' is more"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "'a' is required"),
        ({"type": "object", "required": "a"}, "'required' must be an array"),
        (
            {"type": "object", "additionalProperties": INTEGER, "minProperties": 2},
            "supported up to 1",
        ),
        ({"type": "object", "properties": {"a": True}, "minProperties": 2}, "'minProperties' is more"),
        ({"type": "object", "properties": {"a": True}, "required": ["a"], "maxProperties": 0}, "'maxProperties'"),
        ({"type": "object", "properties": {"a": False}}, "'false' allows nothing"),
        ({"type": "object", "properties": {"a": 3}}, "must be an object or a boolean"),
        ({"type": "object", "patternProperties": {"a": True, "b": True}}, "one pattern"),
        ({"type": "object", "properties": {"a": True}, "propertyNames": {"pattern": "a"}}, "beside named properties"),
        ({"propertyNames": {"maxLength": 3}}, "'propertyNames' is supported"),
        ({"anyOf": []}, "'anyOf' has no alternatives"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "'oneOf' is supported where"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "'oneOf' is supported where"),
        ({"allOf": [INTEGER, {"type": "string"}]}, "no type is allowed by both"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "two different 'pattern'"),
        (
            {"allOf": [{"properties": {"a": True}, "additionalProperties": False}, {"properties": {"b": True}}]},
            "joined",
        ),
        ({"$ref": "#"}, "leads to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "leads to itself"),
        ({"$ref": "#/$defs/a"}, "there is nothing"),
        ({"$ref": "https://example.com/a.json"}, "only lead into the schema"),
        ({"$ref": 3}, r"'\$ref' must be a string"),
        ({"allOf": [{"$ref": "#"}, INTEGER]}, "part of itself"),
        ({"enum": ["x" * 70000]}, "65536 are the most"),
    ],
)
def test_a_refusal_says_what_is_wrong(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        normalise(schema)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_c5_a_schema_may_be_so_deep() -> None:
    assert normal(nested(MOST_DEPTH // 2))
    with pytest.raises(SchemaError, match="64 deep"):
        normalise(nested(MOST_DEPTH + 1))
    with pytest.raises(SchemaError, match="64 deep"):
        normalise(nested(10_000))


def test_c5_alternatives_must_not_multiply_for_ever() -> None:
    level = {f"d{at}": {"anyOf": [{"allOf": [{"$ref": f"#/$defs/d{at + 1}"}, {}]}] * 4} for at in range(12)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**level, "d12": {"type": "null"}}}
    with pytest.raises(SchemaError, match="parts"):
        normalise(schema)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"title": "T", "x-note": 1, **INTEGER}, INTEGER),
        ({"type": "integer", "minimum": 0.5, "exclusiveMaximum": 10}, {"type": "integer", "minimum": 1, "maximum": 9}),
        ({"minimum": 1}, {"type": "number", "minimum": 1, "maximum": 10**18 - 1}),
        ({"type": ["integer", "number"]}, {"type": "number"}),
        ({"type": "string", "enum": ["a", 1, "b"]}, {"enum": ["a", "b"]}),
        ({"const": None}, {"enum": [None]}),
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}], **INTEGER}, {**INTEGER, "minimum": 1, "maximum": 3}),
        ({"oneOf": [{"type": "string"}, INTEGER]}, {"anyOf": [{"type": "string"}, INTEGER]}),
        (
            {"properties": {"a": True}, "required": ["a", "b"]},
            {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"], "additionalProperties": False},
        ),
        (
            {"type": "object"},
            {"type": "object", "properties": {}, "required": [], "additionalProperties": {}},
        ),
        (
            {"type": "object", "properties": {"a": INTEGER}, "anyOf": [{"required": ["a"]}]},
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "additionalProperties": False},
        ),
    ],
)
def test_what_a_schema_becomes(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert normal(schema) == {**expected, "$defs": {}}


def test_references_may_be_recursive_and_escaped() -> None:
    schema = {
        "definitions": {"a/b": {"type": "object", "properties": {"next": {"$ref": "#/definitions/a~1b"}}}},
        "$ref": "#/definitions/a~1b",
    }
    found = normal(schema)
    assert found["$ref"] == "#/$defs/r0"
    assert found["$defs"]["r0"]["properties"] == {"next": {"$ref": "#/$defs/r0"}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*sorted(SUPPORTED), "a", "b"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_whatever_comes_is_taken_or_refused(schema: object) -> None:
    """Nothing else than a SchemaError leaves here."""
    if isinstance(schema, dict):
        with contextlib.suppress(SchemaError):
            assert json.loads(normalise(schema)).keys() >= {"$defs"}
