"""A reader's own calls say what a body may hold; what they do not say must stand in the table, and nothing else."""

from typing import Any

import pytest

from sidecar.protocol.fields import Fields
from sidecar.protocol.openapi.reading import Noted, Schema, UndescribedError, array, describe, nullable, record, text
from sidecar.protocol.options import unknown_fields
from sidecar.settings import Api

REFUSING, IGNORING = Api(), Api(unknown_fields="ignore")


def read(fields: Fields, api: Api) -> None:
    """A reader of every kind of field."""
    fields.required_text("name")
    fields.text("note")
    fields.choice("size", ("s", "m"))
    fields.flag("on")
    fields.integer("count", 0 if fields.flag("on") else 1, api.max_choices)
    fields.number("share", -1.5, 2)
    fields.array("rows")
    fields.value("any")
    inner = fields.object("inner")
    if inner is not None:
        inner.required_text("kind")
        inner.flag("deep")
        unknown_fields(inner, api)
    fields.object("open")
    unknown_fields(fields, api)


SAMPLES: list[dict[str, object]] = [{"name": "x"}, {"name": "x", "on": True, "inner": {"kind": "k"}}]
MORE: dict[str, Schema] = {"rows": array(text(3), 4), "any": {"enum": [1]}, "inner.kind": {"enum": ["k"]}}


def test_all_kinds_of_fields_are_described() -> None:
    found = describe(read, SAMPLES, MORE, Api(max_choices=5))
    assert found["required"] == ["name"]
    assert found["additionalProperties"] is False
    assert found["properties"] == {
        "name": {"type": "string"},
        "note": {"type": ["string", "null"]},
        "size": {"type": ["string", "null"], "enum": ["s", "m", None]},
        "on": {"type": ["boolean", "null"]},
        # The bounds of the last sample.
        "count": {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
        "share": {"type": ["number", "null"], "minimum": -1.5, "maximum": 2},
        "rows": {"type": ["array", "null"], "items": {"type": "string", "maxLength": 3}, "maxItems": 4},
        "any": {"enum": [1, None]},
        "inner": {
            "type": ["object", "null"],
            "properties": {"kind": {"type": "string", "enum": ["k"]}, "deep": {"type": ["boolean", "null"]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
        # Nobody looked for unknown fields in it.
        "open": {"type": ["object", "null"]},
    }


def test_unknown_fields_may_pass_where_the_settings_say_so() -> None:
    found = describe(read, SAMPLES, MORE, IGNORING)
    assert found["additionalProperties"] is True
    assert found["properties"]["inner"]["additionalProperties"] is True


@pytest.mark.parametrize("missing", ["rows", "any"])
def test_what_only_a_table_can_describe_must_be_in_it(missing: str) -> None:
    more = {name: schema for name, schema in MORE.items() if name != missing}
    with pytest.raises(UndescribedError, match=f"read, but not described: {missing}$"):
        describe(read, SAMPLES, more, REFUSING)


@pytest.mark.parametrize("name", ["gone", "inner.gone"])
def test_nothing_is_described_that_no_reader_asks_for(name: str) -> None:
    with pytest.raises(UndescribedError, match=f"described, but not read: {name}$"):
        describe(read, SAMPLES, {**MORE, name: text()}, REFUSING)


def test_it_reads_as_fields_do() -> None:
    body: dict[str, Any] = {"name": "x", "other": None, "inner": {"kind": "k", "more": 1}}
    fields, noted = Fields(body), Noted().begin(body)
    for each in (fields, noted):
        read(each, IGNORING)
    assert fields.unread() == noted.unread() == ["other"]
    assert noted.names() == fields.names()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"anyOf": [text()]}, {"anyOf": [text(), {"type": "null"}]}),
        ({"type": "string", "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"enum": []}, {"enum": [None]}),
        (text(2, 1), {"type": ["string", "null"], "maxLength": 2, "minLength": 1}),
    ],
)
def test_what_may_be_null(schema: Schema, expected: Schema) -> None:
    assert nullable(schema) == expected


def test_of_a_record_all_but_the_required_may_be_null() -> None:
    assert record({"a": text(), "b": text()}, "a") == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}},
        "required": ["a"],
    }
