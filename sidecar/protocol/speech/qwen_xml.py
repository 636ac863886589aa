"""A call as Qwen3-Coder writes it: `<function=name>`, a `<parameter=key>` for each argument, `</function>`.

Values are bare text between two line ends; which kind of JSON they are is for the tool's schema to say.
"""

import json
from typing import Final

from sidecar.protocol.speech.calls import Schemas
from sidecar.protocol.speech.page import MalformedError, Page, Reading
from sidecar.protocol.speech.pieces import Kind

FUNCTION: Final = "<function="
FUNCTION_END: Final = "</function>"
PARAMETER: Final = "<parameter="
PARAMETER_END: Final = "</parameter>"
# The model was taught Python's words, too.
_PYTHON: Final = {"True": "true", "False": "false", "None": "null"}


def xml_call(page: Page, offered: Schemas) -> Reading[None]:
    """The arguments are given one by one, each when it is whole."""
    yield from page.expect(FUNCTION)
    name = yield from page.up_to(">")
    if name not in offered:
        raise MalformedError
    before = "{"
    while True:
        yield from page.space()
        if not (yield from page.at(PARAMETER)):
            break
        page.read(len(PARAMETER))
        key = yield from page.up_to(">")
        text = yield from page.up_to(PARAMETER_END)
        if before == "{":
            page.give(Kind.CALL, name)
        value = _as_json(text.removeprefix("\n").removesuffix("\n"), _property(offered[name], key))
        page.give(Kind.ARGUMENTS, f"{before}{json.dumps(key, ensure_ascii=False)}: {value}")
        before = ", "
    yield from page.expect(FUNCTION_END)
    if before == "{":
        page.give(Kind.CALL, name)
    page.give(Kind.ARGUMENTS, "{}" if before == "{" else "}")
    page.give(Kind.CALL_END)


def _property(schema: object, key: str) -> object:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties.get(key) if isinstance(properties, dict) else None


def _as_json(text: str, schema: object) -> str:
    types = _types(schema)
    word = _PYTHON.get(text.strip(), text.strip())
    if types <= {"string", "null"}:
        return word if word == "null" in types else json.dumps(text, ensure_ascii=False)
    try:
        json.loads(word, parse_constant=_no_number)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return word


def _types(schema: object) -> set[str]:
    """The kinds of JSON that a value may be; those of a text if nothing is said."""
    found: set[str] = set()
    if isinstance(schema, dict):
        said = schema.get("type")
        found.update(one for one in (said if isinstance(said, list) else [said]) if isinstance(one, str))
        for several in (schema.get("anyOf"), schema.get("oneOf")):
            for one in several if isinstance(several, list) else []:
                found |= _types(one)
    return found or {"string"}


def _no_number(name: str) -> object:
    raise ValueError(name)
