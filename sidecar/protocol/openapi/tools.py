"""Tools in bodies as JSON Schema; what a tool's own schema may have is for no schema to say."""

from typing import Final

from sidecar.protocol import anthropic_content, anthropic_tools, tools
from sidecar.protocol.openapi.conversations import refused
from sidecar.protocol.openapi.reading import Schema, array, nullable, text
from sidecar.settings import Api

_FUNCTION_TYPE: Final[Schema] = {"enum": ["function"]}
_NAMED: Final[Schema] = {"type": "object", "properties": {"name": text()}, "required": ["name"]}
_CHOSEN: Final[Schema] = {
    "type": "object",
    "properties": {"type": _FUNCTION_TYPE, "function": _NAMED},
    "required": ["type", "function"],
}
_FUNCTION: Final[Schema] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": f"^{tools.NAME.pattern}$"},
        "description": nullable(text()),
        "parameters": nullable({"type": "object"}),
        "strict": nullable({"type": "boolean"}),
    },
    "required": ["name"],
}


def offered() -> dict[str, Schema]:
    """The field that chats and /tokenize have."""
    tool = {
        "type": "object",
        "properties": {"type": _FUNCTION_TYPE, "function": _FUNCTION},
        "required": ["type", "function"],
    }
    return {"tools": array(tool, tools.MAX_TOOLS, 1)}


def called() -> dict[str, Schema]:
    """Those that only chats have."""
    allowed = {
        "type": "object",
        "properties": {"mode": {"enum": ["auto", "required"]}, "tools": array(_CHOSEN, tools.MAX_TOOLS, 1)},
        "required": ["mode", "tools"],
    }
    among = {
        "type": "object",
        "properties": {"type": {"enum": ["allowed_tools"]}, "allowed_tools": allowed},
        "required": ["type", "allowed_tools"],
    }
    return {
        **offered(),
        "tool_choice": {"anyOf": [{"enum": list(tools.MODES)}, _CHOSEN, among]},
        "functions": array(_FUNCTION, tools.MAX_TOOLS, 1),
        "function_call": {"anyOf": [{"enum": list(tools.OLD_MODES)}, _NAMED]},
    }


def flat() -> dict[str, Schema]:
    """Those of responses."""
    tool = {
        "type": "object",
        "properties": {"type": _FUNCTION_TYPE, **_FUNCTION["properties"], **refused(tools.REFUSED_OF_FLAT_TOOLS)},
        "required": ["type", "name"],
    }
    chosen = {
        "type": "object",
        "properties": {"type": _FUNCTION_TYPE, "name": text()},
        "required": ["type", "name"],
    }
    among = {
        "type": "object",
        "properties": {
            "type": {"enum": ["allowed_tools"]},
            "mode": {"enum": ["auto", "required"]},
            "tools": array(chosen, tools.MAX_TOOLS, 1),
        },
        "required": ["type", "mode", "tools"],
    }
    return {
        "tools": array(tool, tools.MAX_TOOLS),
        "tool_choice": {"anyOf": [{"enum": list(tools.MODES)}, chosen, among]},
    }


def of_anthropic(api: Api) -> dict[str, Schema]:
    """Those of Anthropic's endpoints."""
    properties = {name: schema for name, schema in _FUNCTION["properties"].items() if name != "parameters"}
    tool = {
        "type": "object",
        "properties": {
            "type": nullable({"enum": ["custom"]}),
            **properties,
            "input_schema": {"type": "object"},
            **refused(anthropic_content.REFUSED_OF_BLOCKS),
        },
        "required": ["name", "input_schema"],
        "additionalProperties": api.unknown_fields == "ignore",
    }
    return {"tools": array(tool, tools.MAX_TOOLS), "tool_choice.type": {"enum": list(anthropic_tools.CHOICES)}}
