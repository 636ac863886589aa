"""The strictness of one object's fields: null is absent, a bool is no number, and a refusal names the place."""

import json
from collections.abc import Callable

import pytest

from sidecar.protocol.fields import Fields, decode_object
from sidecar.wire.errors import ApiError


def fields(**data: object) -> Fields:
    return decode_object(json.dumps(data).encode())


def test_what_nobody_asked_for_is_unread_null_or_not() -> None:
    some = fields(a=1, b=None, c=2)
    some.integer("a", 0, 5)
    some.text("missing")
    assert some.unread() == ["b", "c"]


def test_a_nested_field_has_its_whole_path() -> None:
    inner = fields(a={"b": {"c": "x"}}).object("a")
    assert inner is not None
    deeper = inner.object("b")
    assert deeper is not None
    with pytest.raises(ApiError, match=r"'a\.b\.c'") as caught:
        deeper.integer("c", 0, 5)
    assert caught.value.param == "a.b.c"


@pytest.mark.parametrize(
    ("read", "value", "code"),
    [
        (lambda one: one.integer("a", 0, 5), True, "invalid_type"),
        (lambda one: one.integer("a", 0, 5), "5", "invalid_type"),
        (lambda one: one.integer("a", 0, 5), 1.5, "invalid_type"),
        (lambda one: one.integer("a", 0, 5), 6, "integer_above_max_value"),
        (lambda one: one.integer("a", 0, 5), -1, "integer_below_min_value"),
        (lambda one: one.integer("a", 0, 5), 10**3000, "integer_above_max_value"),
        (lambda one: one.number("a", 0, 5), False, "invalid_type"),
        (lambda one: one.number("a", 0, 5), 5.1, "decimal_above_max_value"),
        (lambda one: one.text("a"), 5, "invalid_type"),
        (lambda one: one.flag("a"), 1, "invalid_type"),
        (lambda one: one.array("a"), {}, "invalid_type"),
        (lambda one: one.object("a"), [], "invalid_type"),
        (lambda one: one.choice("a", ("b",)), "c", "invalid_value"),
        (lambda one: one.required_text("a"), None, "missing_required_parameter"),
    ],
)
def test_c1_a_wrong_value_is_refused(read: Callable[[Fields], object], value: object, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(fields(a=value))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "a", code)
    assert len(caught.value.message) < 300


def test_c3_an_integral_float_is_an_integer_and_any_number_a_decimal() -> None:
    assert fields(a=5.0).integer("a", 0, 5) == 5
    assert fields(a=5).number("a", 0, 5) == 5.0
