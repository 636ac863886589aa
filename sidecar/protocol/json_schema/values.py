"""What schemas say of plain values: constants, enumerations, numbers; and the error that all of this package raises."""

import json
import math
from collections.abc import Iterable
from typing import Final, TypeGuard

# A JSON Schema that is an object.
Schema = dict[str, object]

TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_CLASSES: Final[dict[str, type | tuple[()]]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (),
    "integer": (),
}
# A number that is bounded on one side has the other bound here: 18 digits.
_MOST: Final = 10**18 - 1
# Of the compiler's integers.
_INT64: Final = (1 << 63) - 1
# OpenAPI's names of how a number is held, which say nothing that JSON could break.
_NUMBER_FORMATS: Final = ("int32", "int64", "float", "double")


class SchemaError(ValueError):
    """The schema is wrong, or no grammar can follow it. `path`: where, as a JSON pointer behind `#`."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(f"{what} (at {path})" if path else what)


def refuse(name: str, path: str) -> SchemaError:
    return SchemaError(f"the keyword '{name[:64]}' is not supported", path)


def of_type(schema: Schema, names: Iterable[str]) -> Schema:
    return {name: schema[name] for name in names if name in schema}


def count(schema: Schema, name: str, path: str) -> int | None:
    """A length or a number of parts."""
    value = schema.get(name)
    if value is None and name not in schema:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _INT64:
        raise SchemaError(f"'{name}' must be a whole number, 0 or more", path)
    return value


def counts(schema: Schema, least_name: str, most_name: str, path: str) -> tuple[int, int | None]:
    """A range of lengths; 0 and None where nothing is said."""
    least, most = count(schema, least_name, path) or 0, count(schema, most_name, path)
    if most is not None and most < least:
        raise SchemaError(f"'{most_name}' is less than '{least_name}'", path)
    return least, most


def values_of(schema: Schema, path: str) -> Schema:
    """`enum` or `const`: those of its values that are of the type that is asked for."""
    others = sorted(set(schema) - {"enum", "const", "type"})
    if others:
        raise SchemaError(f"'{others[0]}' beside 'enum' or 'const' is not supported", path)
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list) or not values:
        raise SchemaError("'enum' must be an array with something in it", path)
    if "enum" in schema and "const" in schema:
        values = [value for value in values if same(value, schema["const"])]
    types = types_of(schema, path)
    found = [value for value in values if types is None or any(is_of(value, kind) for kind in types)]
    if not found:
        raise SchemaError("no value of 'enum' or 'const' is of the type that is asked for", path)
    return {"enum": found}


def types_of(schema: Schema, path: str) -> list[str] | None:
    """None where no type is asked for."""
    if "type" not in schema:
        return None
    given = schema["type"]
    types = [given] if isinstance(given, str) else given
    if not isinstance(types, list) or not types or not all(kind in TYPES for kind in types):
        raise SchemaError(f"'type' must be one of {', '.join(TYPES)}, or an array of them", path)
    # Each once; an integer is a number.
    return [kind for kind in dict.fromkeys(types) if kind != "integer" or "number" not in types]


def is_of(value: object, kind: str) -> bool:
    """Whether a JSON value is of a type. 1.0 is an integer (JSON Schema Core, section 4.2.2)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return isinstance(value, _CLASSES[kind])
    return kind == "number" or (kind == "integer" and (isinstance(value, int) or value.is_integer()))


def same(one: object, other: object) -> bool:
    """As JSON: `true` is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def numbers(schema: Schema, path: str, *, whole: bool) -> Schema:
    """A number within bounds; of whole ones the bounds are whole, too."""
    form = schema.get("format")
    if "format" in schema and not (isinstance(form, str) and form in _NUMBER_FORMATS):
        raise SchemaError(f"the format {str(form)[:64]!r} of a number is not supported", path)
    low = _bound(schema, "minimum", "exclusiveMinimum", path, whole=whole)
    high = _bound(schema, "maximum", "exclusiveMaximum", path, whole=whole)
    # Bounded on one side alone, it would have digits without end.
    if high is None and low is not None and low[0] < _MOST:
        high = (_MOST, False)
    elif low is None and high is not None and high[0] > -_MOST:
        low = (-_MOST, False)
    result: Schema = {"type": "integer" if whole else "number"}
    for bound, name in ((low, "inimum"), (high, "aximum")):
        if bound is not None:
            value, exclusive = bound
            result[("exclusiveM" if exclusive else "m") + name] = value
    if low is not None and high is not None:
        empty = low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))
        if empty:
            raise SchemaError("no number is between its bounds", path)
    return result


def _bound(schema: Schema, name: str, exclusive_name: str, path: str, *, whole: bool) -> tuple[float, bool] | None:
    """The stricter of the two, and whether it is excluded; None without one."""
    lower = name == "minimum"
    found: list[tuple[float, bool]] = []
    for key, exclusive in ((name, False), (exclusive_name, True)):
        if key not in schema:
            continue
        value = schema[key]
        if isinstance(value, bool) or not (isinstance(value, int) or _is_finite(value)):
            raise SchemaError(f"'{key}' must be a number", path)
        found.append(_whole_bound(value, lower, exclusive, path) if whole else (value, exclusive))
    if not found:
        return None
    # At the same value the excluding one is the stricter.
    return max(found) if lower else min(found, key=lambda bound: (bound[0], not bound[1]))


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value)


def _whole_bound(value: float, lower: bool, exclusive: bool, path: str) -> tuple[float, bool]:
    if lower:
        bound = math.floor(value) + 1 if exclusive else math.ceil(value)
        if bound > _INT64:
            raise SchemaError("an integer's bound has more than 63 bits", path)
        return max(bound, -_INT64), False
    bound = math.ceil(value) - 1 if exclusive else math.floor(value)
    if bound < -_INT64:
        raise SchemaError("an integer's bound has more than 63 bits", path)
    return min(bound, _INT64), False
