"""Typed reading of one JSON object, with OpenAI's codes and the path of the field at fault in every refusal.

`null` means absent. A bool is not a number, "5" is not 5, and 5.0 is 5 where an integer is asked for.
"""

import math
from collections.abc import Sequence

import msgspec

from sidecar.wire.errors import ApiError, bad_request

_LONGEST_SHOWN = 64


def decode_object(body: bytes) -> "Fields":
    """Read a request body. Raises ApiError 400 for what is not a JSON object."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise bad_request("We could not parse the JSON body of your request.") from exc
    if not isinstance(data, dict):
        raise bad_request("The body of your request must be a JSON object.")
    return Fields(data)


class Fields:
    """The fields of one object. Mutable: `_read`, the names that were asked for."""

    def __init__(self, data: dict[str, object], path: str = "") -> None:
        self._data = data
        self._path = path
        self._read: set[str] = set()

    def path(self, name: str = "") -> str:
        """Of a field, or of the object itself."""
        return f"{self._path}.{name}" if self._path and name else self._path or name

    def value(self, name: str) -> object:
        """The value as it is; None if the field is absent or null."""
        self._read.add(name)
        return self._data.get(name)

    def names(self) -> list[str]:
        return list(self._data)

    def unread(self) -> list[str]:
        """The fields nobody asked for, by their paths; null ones too, for a name can be misspelt beside any value."""
        return [self.path(name) for name in self._data if name not in self._read]

    def text(self, name: str) -> str | None:
        value = self.value(name)
        return None if value is None else as_text(value, self.path(name))

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise missing(self.path(name))
        return value

    def choice(self, name: str, values: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in values:
            raise not_one_of(value, values, self.path(name))
        return value

    def flag(self, name: str) -> bool | None:
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.path(name), "a boolean", value)
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.value(name)
        return None if value is None else as_integer(value, self.path(name), low, high)

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(self.path(name), "a decimal", value)
        check_range(value, self.path(name), low, high, "decimal")
        return float(value)

    def array(self, name: str) -> list[object] | None:
        value = self.value(name)
        if value is not None and not isinstance(value, list):
            raise wrong_type(self.path(name), "an array", value)
        return value

    def object(self, name: str) -> "Fields | None":
        value = self.value(name)
        return None if value is None else as_object(value, self.path(name))


def as_text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(path, "a string", value)
    return value


def as_object(value: object, path: str) -> Fields:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    return Fields(value, path)


def as_integer(value: object, path: str, low: int, high: int) -> int:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(path, "an integer", value)
    check_range(value, path, low, high, "integer")
    return value


def check_range(value: float, path: str, low: float, high: float, noun: str) -> None:
    """Raises ApiError 400 with OpenAI's four codes for numbers out of range."""
    if value < low:
        raise bad_request(
            f"Invalid '{path}': {noun} below minimum value. Expected a value >= {low}, but got {shown(value)} instead.",
            param=path,
            code=f"{noun}_below_min_value",
        )
    if value > high:
        raise bad_request(
            f"Invalid '{path}': {noun} above maximum value. Expected a value <= {high}, "
            f"but got {shown(value)} instead.",
            param=path,
            code=f"{noun}_above_max_value",
        )


def check_length(values: Sequence[object], path: str, most: int) -> None:
    """Raises ApiError 400 for an empty or too long array."""
    if not values:
        raise bad_request(
            f"Invalid '{path}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param=path,
            code="empty_array",
        )
    if len(values) > most:
        raise bad_request(
            f"Invalid '{path}': array too long. Expected an array with maximum length {most}, "
            f"but got an array with length {len(values)} instead.",
            param=path,
            code="array_above_max_length",
        )


def missing(path: str) -> ApiError:
    return bad_request(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def wrong_type(path: str, expected: str, value: object) -> ApiError:
    return bad_request(
        f"Invalid type for '{path}': expected {expected}, but got {type_name(value)} instead.",
        param=path,
        code="invalid_type",
    )


def invalid_value(path: str, message: str) -> ApiError:
    return bad_request(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")


def too_long(path: str, most: int) -> ApiError:
    """For a string."""
    return bad_request(
        f"Invalid '{path}': it may have {most} characters at most.", param=path, code="string_above_max_length"
    )


def not_one_of(value: str, values: Sequence[str], path: str) -> ApiError:
    supported = ", ".join(f"'{name}'" for name in values)
    return bad_request(
        f"Invalid value: '{value[:_LONGEST_SHOWN]}'. Supported values are: {supported}.",
        param=path,
        code="invalid_value",
    )


def unsupported(path: str) -> ApiError:
    return bad_request(
        f"Unsupported parameter: '{path}' is not supported here.", param=path, code="unsupported_parameter"
    )


def shown(value: float) -> str:
    """A number for a message; a number of a thousand digits is not worth repeating."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 38 digits"
    return str(value)


def type_name(value: object) -> str:
    """What JSON calls it."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
    }
    return names.get(type(value), "an object")
