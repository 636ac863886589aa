"""Two schemas that a value must follow both, as one."""

from typing import Final

from sidecar.protocol.json_schema.values import Schema, SchemaError, is_of, same, types_of

# What says something to people or programs, and nothing of a value.
ANNOTATIONS: Final = frozenset(
    {
        *("$schema", "$id", "$comment", "title", "description", "default", "examples", "example", "deprecated"),
        *("readOnly", "writeOnly", "discriminator", "contentEncoding", "contentMediaType", "externalDocs"),
    }
)
_LARGER: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
# They look at their neighbours: beside another schema's properties or items they would mean something else.
_CLOSING: Final = ("additionalProperties", "patternProperties", "propertyNames")


def merged(one: Schema, other: Schema, path: str) -> Schema:
    """Raises SchemaError where there is no such schema, or none that can be written."""
    for closed, open_one in ((one, other), (other, one)):
        _check_closed(closed, open_one, path)
    result = {name: value for name, value in one.items() if name not in ANNOTATIONS}
    for name, value in other.items():
        if name in ANNOTATIONS:
            continue
        result[name] = _both(name, result[name], value, path) if name in result else value
    return result


def _check_closed(closed: Schema, other: Schema, path: str) -> None:
    closing = next((name for name in _CLOSING if closed.get(name, True) is not True), None)
    own, others = closed.get("properties"), other.get("properties")
    if closing is None or not isinstance(others, dict):
        return
    if not isinstance(own, dict) or any(name not in own for name in others):
        raise SchemaError(f"'{closing}' does not know the properties of a schema that it is joined with", path)


def _both(name: str, one: object, other: object, path: str) -> object:
    result: object = None
    if same(one, other):
        result = one
    elif name in ("items", "additionalProperties"):
        result = {"allOf": [one, other]}
    elif name == "type":
        result = _types(one, other, path)
    elif isinstance(one, list) and isinstance(other, list):
        if name == "required":
            result = [*one, *(each for each in other if each not in one)]
        elif name == "enum":
            result = [value for value in one if any(same(value, each) for each in other)]
    elif name == "properties" and isinstance(one, dict) and isinstance(other, dict):
        shared = {key: {"allOf": [one[key], other[key]]} for key in one if key in other}
        result = {**one, **other, **shared}
    elif isinstance(one, int | float) and isinstance(other, int | float):
        result = max(one, other) if name in _LARGER else min(one, other) if name in _SMALLER else None
    if result is not None:
        return result
    raise SchemaError(f"two different '{name}' that both must be followed", path)


def _types(one: object, other: object, path: str) -> list[str]:
    first, second = types_of({"type": one}, path) or [], types_of({"type": other}, path) or []
    both = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    both += [kind for kind in second if kind == "integer" and "number" in first]
    if not both:
        raise SchemaError("no type is allowed by both schemas that must be followed", path)
    return both


def are_apart(ones: list[Schema], others: list[Schema]) -> bool:
    """Whether no value can follow one of `ones` and one of `others`: finished schemas without references."""
    return all(_two_apart(one, other) for one in ones for other in others)


def _two_apart(one: Schema, other: Schema) -> bool:
    for first, second in ((one, other), (other, one)):
        values = first.get("enum")
        if isinstance(values, list):
            return all(not _may_be(value, second) for value in values)
    kinds = {one.get("type"), other.get("type")}
    if None in kinds:
        return False
    if len(kinds) == 2:
        return kinds != {"integer", "number"}
    return kinds == {"object"} and _constants_differ(one, other)


def _may_be(value: object, schema: Schema) -> bool:
    values = schema.get("enum")
    if isinstance(values, list):
        return any(same(value, each) for each in values)
    kind = schema.get("type")
    return not isinstance(kind, str) or is_of(value, kind)


def _constants_differ(one: Schema, other: Schema) -> bool:
    """Whether a property that both require can never be the same in both."""
    first, second = _required(one), _required(other)
    return any(
        "enum" in schema and "enum" in second[name] and _two_apart(schema, second[name])
        for name, schema in first.items()
        if name in second
    )


def _required(schema: Schema) -> dict[str, Schema]:
    """The properties that an object must have."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {name: properties[name] for name in required if name in properties}
