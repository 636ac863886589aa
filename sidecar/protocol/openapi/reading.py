"""The JSON Schema of a body, read off the function that reads it: what it asks for, and within which bounds.

`Noted` stands in for `Fields` while a reader reads samples. What its calls do not tell (the items of arrays, values
taken as they are, rules that come after) stands in a table. A field that neither describes raises, and so does a row of
the table that no reader asks for.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from typing_extensions import override

from sidecar.protocol.fields import Fields
from sidecar.settings import Api

# JSON Schema, draft 2020-12: what OpenAPI 3.1 has.
Schema = dict[str, Any]
# What says too little to be left alone.
_BARE: Final[tuple[Schema, ...]] = ({}, {"type": "array"})


class UndescribedError(Exception):
    """The message names the fields that are not described, or described and not read."""


class Noted(Fields):
    """Fields that know what was asked of them, over several samples; of one field's bounds the last count.

    Mutable beside what it inherits: `schemas`, of each field that was asked for; `required`; `closed`, whether the
    reader looked for unknown fields; `_inner`, the objects within.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.schemas: dict[str, Schema] = {}
        self.required: set[str] = set()
        self.closed = False
        self._inner: dict[str, Noted] = {}

    def begin(self, sample: dict[str, object], path: str = "") -> "Noted":
        self._data, self._path = sample, path
        return self

    def schema(self, more: dict[str, Schema], *, open_: bool) -> Schema:
        """The object's. `more` is added to fields by their paths; `open_`: unknown fields are let pass.

        What is not required may be null.
        """
        properties: dict[str, Schema] = {}
        for name, noted in sorted(self.schemas.items()):
            inner = self._inner[name].schema(more, open_=open_) if name in self._inner else {}
            schema = {**noted, **inner, **more.get(self.path(name), {})}
            properties[name] = schema if name in self.required else nullable(schema)
        whole: Schema = {"type": "object", "properties": properties, "required": sorted(self.required)}
        return {**whole, "additionalProperties": open_} if self.closed else whole

    def noted(self) -> dict[str, Schema]:
        """What is known of each field, here and within, by its path."""
        found = {self.path(name): schema for name, schema in self.schemas.items()}
        for inner in self._inner.values():
            found |= inner.noted()
        return found

    @override
    def value(self, name: str) -> object:
        self._note(name, {})
        return super().value(name)

    @override
    def unread(self) -> list[str]:
        self.closed = True
        return super().unread()

    @override
    def text(self, name: str) -> str | None:
        self._note(name, {"type": "string"})
        return super().text(name)

    @override
    def required_text(self, name: str) -> str:
        self.required.add(name)
        return super().required_text(name)

    @override
    def choice(self, name: str, values: Sequence[str]) -> str | None:
        self._note(name, {"enum": list(values)})
        return super().choice(name, values)

    @override
    def flag(self, name: str) -> bool | None:
        self._note(name, {"type": "boolean"})
        return super().flag(name)

    @override
    def integer(self, name: str, low: int, high: int) -> int | None:
        self._note(name, {"type": "integer", "minimum": low, "maximum": high})
        return super().integer(name, low, high)

    @override
    def number(self, name: str, low: float, high: float) -> float | None:
        self._note(name, {"type": "number", "minimum": low, "maximum": high})
        return super().number(name, low, high)

    @override
    def array(self, name: str) -> list[object] | None:
        self._note(name, {"type": "array"})
        return super().array(name)

    @override
    def object(self, name: str) -> Fields | None:
        self._note(name, {"type": "object"})
        value = self.value(name)
        if not isinstance(value, dict):
            return super().object(name)
        return self._inner.setdefault(name, Noted()).begin(value, self.path(name))

    def _note(self, name: str, schema: Schema) -> None:
        self.schemas[name] = {**self.schemas.get(name, {}), **schema}


def describe(
    read: Callable[[Fields, Api], object],
    samples: Sequence[dict[str, object]],
    more: dict[str, Schema],
    api: Api,
) -> Schema:
    """The schema of the bodies that `read` takes. What all samples have is required.

    They lead through all branches, and have the objects within that are closed. Raises UndescribedError.
    """
    fields = Noted()
    for sample in samples:
        read(fields.begin(sample), api)
    fields.required |= set.intersection(*(set(sample) for sample in samples))
    noted = fields.noted()
    if unread := more.keys() - noted.keys():
        raise UndescribedError(f"described, but not read: {', '.join(sorted(unread))}")
    if bare := [path for path, schema in noted.items() if schema in _BARE and path not in more]:
        raise UndescribedError(f"read, but not described: {', '.join(sorted(bare))}")
    return fields.schema(more, open_=api.unknown_fields == "ignore")


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    found = dict(schema)
    if "type" in schema:
        found["type"] = [schema["type"], "null"]
    if "enum" in schema:
        found["enum"] = [*schema["enum"], None]
    return found


def text(most: int | None = None, least: int = 0) -> Schema:
    """A string of so many characters."""
    return {
        "type": "string",
        **({} if most is None else {"maxLength": most}),
        **({"minLength": least} if least else {}),
    }


def array(items: Schema, most: int | None = None, least: int = 0) -> Schema:
    return {
        "type": "array",
        "items": items,
        **({} if most is None else {"maxItems": most}),
        **({"minItems": least} if least else {}),
    }


def record(properties: dict[str, Schema], *required: str) -> Schema:
    """An object with at least these fields; what is not required may be null."""
    told = {name: schema if name in required else nullable(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": told, "required": list(required)}
