"""Strings of a schema: their length, pattern and format. A format is a pattern that is known by name."""

from typing import Final

from sidecar.protocol.json_schema.regex import RegexError
from sidecar.protocol.json_schema.regex_writing import for_string
from sidecar.protocol.json_schema.values import Schema, SchemaError, counts

_YEAR: Final = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_LEAP_YEAR: Final = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE: Final = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_HOURS: Final = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME: Final = rf"{_HOURS}:[0-5]\d(?:\.\d{{1,6}})?(?:Z|[+-]{_HOURS})"
_DURATION_TIME: Final = r"T(?:\d{1,9}H(?:\d{1,9}M(?:\d{1,9}S)?)?|\d{1,9}M(?:\d{1,9}S)?|\d{1,9}S)"
_DURATION_DATE: Final = r"(?:\d{1,9}Y(?:\d{1,9}M(?:\d{1,9}D)?)?|\d{1,9}M(?:\d{1,9}D)?|\d{1,9}D)"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_BYTE: Final = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_GROUP: Final = r"[0-9A-Fa-f]{1,4}"
_IPV6: Final = (
    rf"(?:(?:{_GROUP}:){{7}}{_GROUP}"
    + "".join(
        rf"|(?:{_GROUP}:){{{count - 1}}}{_GROUP}::(?:(?:{_GROUP}:){{0,{6 - count}}}{_GROUP})?" for count in range(1, 7)
    )
    + rf"|::(?:(?:{_GROUP}:){{0,6}}{_GROUP})?)"
)
_PATH: Final = r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*"
_QUERY: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"
# Those of JSON Schema Validation, section 7.3, each as far as it is used: RFC 3339 without leap seconds, addresses
# without quotes and comments, URIs with a host.
FORMATS: Final[dict[str, str]] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|\d{{1,9}}W)",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL}){{1,3}}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": _IPV6,
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "uri": rf"https?://{_HOST}(?::[1-9]\d{{0,3}})?{_PATH}(?:\?{_QUERY})?(?:#{_QUERY})?",
}
# Names that say how a program holds a string, and nothing of its text.
_SILENT: Final = frozenset({"password", "binary", "path", "file-path", "directory-path"})


def string_schema(given: Schema, path: str) -> Schema:
    least, most = counts(given, "minLength", "maxLength", path)
    form = given.get("format", "")
    pattern = given.get("pattern")
    if "format" in given and not (isinstance(form, str) and (form in FORMATS or form in _SILENT)):
        raise SchemaError(f"the format {str(form)[:64]!r} is not supported; {', '.join(FORMATS)} are", path)
    if form in FORMATS:
        if pattern is not None:
            raise SchemaError("'pattern' beside 'format' is not supported", path)
        pattern = FORMATS[form]
    result: Schema = {"type": "string"}
    if pattern is not None:
        return result | {"pattern": written_pattern(pattern, path, (least, most), ours=form in FORMATS)}
    return result | ({"minLength": least} if least else {}) | ({} if most is None else {"maxLength": most})


def written_pattern(
    pattern: object, path: str, lengths: tuple[int, int | None] = (0, None), *, ours: bool = False
) -> str:
    """As the compiler takes it. `ours`: it is no client's. `lengths`: what the string may have, and the pattern must
    keep to by itself.
    """
    if not isinstance(pattern, str):
        raise SchemaError("'pattern' must be a string", path)
    try:
        written, shortest, longest = for_string(pattern, bounded=not ours)
    except RegexError as exc:
        raise SchemaError(f"'pattern': {exc}", path) from exc
    least, most = lengths
    if shortest < least:
        raise SchemaError(f"'minLength' beside a 'pattern' or 'format' that allows {shortest} characters", path)
    if most is not None and (longest is None or longest > most):
        allows = "any number of" if longest is None else longest
        raise SchemaError(f"'maxLength' beside a 'pattern' or 'format' that allows {allows} characters", path)
    return written
