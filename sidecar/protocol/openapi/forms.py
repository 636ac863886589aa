"""What gives an answer its form, as JSON Schema: formats, patterns, choices, grammars."""

from typing import Final

from sidecar.protocol import structured
from sidecar.protocol.json_schema.normalise import MOST_BYTES
from sidecar.protocol.json_schema.regex import MOST_CHARS
from sidecar.protocol.openapi.reading import Schema, array, text

_JSON_SCHEMA: Final[Schema] = {"type": "object", "description": "A JSON Schema; docs/structured.md has its keywords."}
_KINDS: Final[Schema] = {"enum": list(structured.FORMATS)}
_NAME: Final[Schema] = {"pattern": f"^{structured.NAME.pattern}$"}


def response_format() -> dict[str, Schema]:
    return {
        "response_format.type": _KINDS,
        "response_format.schema": _JSON_SCHEMA,
        "response_format.json_schema.name": _NAME,
        "response_format.json_schema.schema": _JSON_SCHEMA,
    }


def text_format() -> dict[str, Schema]:
    """Of responses."""
    return {"text.format.type": _KINDS, "text.format.name": _NAME, "text.format.schema": _JSON_SCHEMA}


def structured_outputs() -> dict[str, Schema]:
    """And its older names."""
    kinds = {
        "json": {"anyOf": [_JSON_SCHEMA, text()]},
        "regex": text(MOST_CHARS),
        "choice": array(text(least=1), structured.MAX_CHOICES, 1),
        "grammar": text(MOST_BYTES),
    }
    return {
        "structured_outputs.json_object": {"type": "boolean"},
        **{f"structured_outputs.{name}": schema for name, schema in kinds.items()},
        **{f"guided_{name}": schema for name, schema in kinds.items()},
    }
