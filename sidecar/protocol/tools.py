"""The tools of a body and what is asked of the model about them, read into a `ToolUse`.

In /v1/responses a tool and a choice are `flat`: what chats have in an object of its own stands beside the type. What
/v1/messages has is read in `anthropic_tools`.

`functions` and `function_call` are OpenAI's first names for it: one call at most, and answered in their own shape.
"""

import json
import re
from typing import Final

import msgspec

from sidecar.protocol.fields import Fields, as_object, check_length, invalid_value, missing, not_one_of, wrong_type
from sidecar.protocol.json_schema.normalise import MOST_BYTES, MOST_DEPTH
from sidecar.protocol.options import Neutral, refuse_unsupported
from sidecar.protocol.requests import AllowedTools, Demand, NamedTool, ToolChoice, ToolUse
from sidecar.tokenizer.messages import Tool

MAX_TOOLS: Final = 128
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MODES: Final = ("none", "auto", "required")
OLD_MODES: Final = ("none", "auto")
# What OpenAI's have beside it in /v1/responses.
REFUSED_OF_FLAT_TOOLS: Final[dict[str, Neutral]] = {
    "allowed_callers": (["direct"],),
    "async": (False,),
    "defer_loading": (False,),
    "output_schema": (),
}


def read_tool_use(fields: Fields) -> ToolUse | None:
    """None where there are no tools to call. Raises ApiError 400."""
    tools, functions = read_tools(fields), _functions(fields)
    parallel = fields.flag("parallel_tool_calls")
    if tools and functions:
        raise invalid_value("functions", "'tools' are given, too; give one.")
    choice, old_choice = fields.value("tool_choice"), fields.value("function_call")
    check_choice(choice, "tool_choice", tools)
    check_choice(old_choice, "function_call", functions, "functions")
    if functions:
        use = _function_call(fields, functions)
        return use and msgspec.structs.replace(use, parallel=False, legacy=True)
    if not tools:
        return None
    use = _tool_choice(fields, tools)
    return use and msgspec.structs.replace(use, parallel=parallel is not False)


def read_flat_tool_use(fields: Fields) -> tuple[tuple[Tool, ...], ToolUse | None]:
    """The tools of a body of /v1/responses, and what is asked about them. Raises ApiError 400."""
    # OpenAI takes an empty list there.
    tools = read_tools(fields, flat=True) if fields.array("tools") else ()
    parallel = fields.flag("parallel_tool_calls")
    check_choice(fields.value("tool_choice"), "tool_choice", tools)
    use = _tool_choice(fields, tools, flat=True) if tools else None
    return tools, use and msgspec.structs.replace(use, parallel=parallel is not False)


def told_choice(fields: Fields) -> ToolChoice:
    """The choice of such a body, once it was read, as its answer tells it back."""
    choice = fields.value("tool_choice")
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    found: ToolChoice = msgspec.convert(choice, NamedTool | AllowedTools)
    return found


def read_tools(fields: Fields, *, flat: bool = False) -> tuple[Tool, ...]:
    """The field `tools`. Raises ApiError 400."""
    given = fields.array("tools")
    if given is None:
        return ()
    check_length(given, "tools", MAX_TOOLS)
    tools = tuple(_tool(as_object(tool, f"tools[{at}]"), flat=flat) for at, tool in enumerate(given))
    check_names(tools, "tools")
    return tools


def check_choice(choice: object, path: str, tools: tuple[Tool, ...], among: str = "tools") -> None:
    """Raises ApiError 400 for one that wants a call where there is nothing to call."""
    if choice not in (None, "none", "auto") and not tools:
        _check_kind(choice, path)
        raise invalid_value(path, f"it is only allowed when '{among}' are specified.")


def _functions(fields: Fields) -> tuple[Tool, ...]:
    given = fields.array("functions")
    if given is None:
        return ()
    check_length(given, "functions", MAX_TOOLS)
    functions = tuple(_function(as_object(tool, f"functions[{at}]")) for at, tool in enumerate(given))
    check_names(functions, "functions")
    return functions


def check_names(tools: tuple[Tool, ...], path: str) -> None:
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise invalid_value(path, f"two of them have the name '{tool.name}'.")
        names.add(tool.name)


def _tool(fields: Fields, *, flat: bool) -> Tool:
    _check_function_type(fields)
    if flat:
        refuse_unsupported(fields, REFUSED_OF_FLAT_TOOLS)
    return _function(_within(fields, "function", flat=flat))


def _within(fields: Fields, name: str, *, flat: bool) -> Fields:
    """What stands in a field that must be there, or beside it."""
    if flat:
        return fields
    inner = fields.object(name)
    if inner is None:
        raise missing(fields.path(name))
    return inner


def _check_function_type(fields: Fields) -> None:
    kind = fields.required_text("type")
    if kind != "function":
        raise not_one_of(kind, ("function",), fields.path("type"))


def _function(fields: Fields) -> Tool:
    return read_function(fields, "parameters")


def read_function(fields: Fields, schema: str) -> Tool:
    """A tool whose arguments have the schema in the field of this name. Raises ApiError 400."""
    name = fields.required_text("name")
    if not NAME.fullmatch(name):
        raise invalid_value(fields.path("name"), "it must have 1 to 64 letters, digits, underscores or hyphens.")
    strict = fields.flag("strict")
    return Tool(name, fields.text("description"), _parameters(fields, schema), strict is True)


def _parameters(fields: Fields, name: str) -> dict[str, object] | None:
    path = fields.path(name)
    schema = fields.value(name)
    if schema is None:
        return None
    if not isinstance(schema, dict):
        raise wrong_type(path, "an object", schema)
    if schema.get("type", "object") != "object":
        raise invalid_value(path, "a tool's arguments are an object, so the schema's type must be 'object'.")
    if len(json.dumps(schema, ensure_ascii=False).encode()) > MOST_BYTES:
        raise invalid_value(path, f"it may have {MOST_BYTES} bytes at most.")
    if _is_deeper(schema, MOST_DEPTH):
        raise invalid_value(path, f"it may be nested {MOST_DEPTH} levels deep at most.")
    return schema


def _is_deeper(value: object, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return most == 0 or any(_is_deeper(one, most - 1) for one in (value.values() if isinstance(value, dict) else value))


def _tool_choice(fields: Fields, tools: tuple[Tool, ...], *, flat: bool = False) -> ToolUse | None:
    choice = fields.value("tool_choice")
    if choice is None or isinstance(choice, str):
        return _by_mode(choice or "auto", tools, "tool_choice", MODES)
    _check_kind(choice, "tool_choice")
    given = as_object(choice, "tool_choice")
    kind = given.required_text("type")
    if kind == "function":
        return named(_within(given, "function", flat=flat), tools)
    if kind != "allowed_tools":
        raise not_one_of(kind, ("function", "allowed_tools"), "tool_choice.type")
    allowed = _within(given, "allowed_tools", flat=flat)
    mode = allowed.required_text("mode")
    found = _allowed(allowed, tools, flat=flat)
    return _by_mode(mode, found, allowed.path("mode"), ("auto", "required"))


def _allowed(fields: Fields, tools: tuple[Tool, ...], *, flat: bool) -> tuple[Tool, ...]:
    path = fields.path("tools")
    given = fields.array("tools")
    if given is None:
        raise missing(path)
    check_length(given, path, MAX_TOOLS)
    names = [_allowed_name(as_object(one, f"{path}[{at}]"), tools, flat=flat) for at, one in enumerate(given)]
    return tuple(tool for tool in tools if tool.name in names)


def _allowed_name(fields: Fields, tools: tuple[Tool, ...], *, flat: bool) -> str:
    _check_function_type(fields)
    return _find(_within(fields, "function", flat=flat), tools).name


def _function_call(fields: Fields, functions: tuple[Tool, ...]) -> ToolUse | None:
    choice = fields.value("function_call")
    if choice is None or isinstance(choice, str):
        return _by_mode(choice or "auto", functions, "function_call", OLD_MODES)
    _check_kind(choice, "function_call")
    return named(as_object(choice, "function_call"), functions)


def _by_mode(mode: str, tools: tuple[Tool, ...], path: str, modes: tuple[str, ...]) -> ToolUse | None:
    if mode not in modes:
        raise not_one_of(mode, modes, path)
    if mode == "none":
        return None
    return ToolUse(tools, tools, Demand.SOME if mode == "required" else Demand.NONE)


def named(fields: Fields, tools: tuple[Tool, ...]) -> ToolUse:
    """The tool that must be called, by its `name`. Raises ApiError 400."""
    return ToolUse(tools, (_find(fields, tools),), Demand.THIS)


def _find(fields: Fields, tools: tuple[Tool, ...]) -> Tool:
    name = fields.required_text("name")
    for tool in tools:
        if tool.name == name:
            return tool
    raise invalid_value(fields.path("name"), f"there is no tool '{name[:64]}'.")


def _check_kind(choice: object, path: str) -> None:
    if not isinstance(choice, str | dict):
        raise wrong_type(path, "a string or an object", choice)
