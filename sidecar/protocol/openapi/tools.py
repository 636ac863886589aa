"""Tools in bodies as JSON Schema; what a tool's own schema may have is for no schema to say."""

from typing import Final

from sidecar.protocol import tools
from sidecar.protocol.openapi.reading import Schema, array, nullable, text

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
