"""The tools of a body of /v1/messages and what is asked of the model about them, read into a `ToolUse`."""

from typing import Final

import msgspec

from sidecar.protocol.anthropic_content import REFUSED_OF_BLOCKS, Unknown
from sidecar.protocol.fields import Fields, as_object, check_length, invalid_value, missing, not_one_of
from sidecar.protocol.options import refuse_unsupported
from sidecar.protocol.requests import Demand, ToolUse
from sidecar.protocol.tools import MAX_TOOLS, check_names, named, read_function
from sidecar.tokenizer.messages import Tool

CHOICES: Final = ("auto", "any", "tool", "none")


def read_anthropic_tools(fields: Fields, unknown: Unknown) -> ToolUse | None:
    """None where there are no tools to call. Raises ApiError 400."""
    given = fields.array("tools") or []
    if given:
        check_length(given, "tools", MAX_TOOLS)
    tools = tuple(_tool(as_object(tool, f"tools[{at}]"), unknown) for at, tool in enumerate(given))
    check_names(tools, "tools")
    choice = fields.object("tool_choice")
    if choice is not None:
        return _chosen(choice, tools, unknown)
    return ToolUse(tools, tools) if tools else None


def _tool(fields: Fields, unknown: Unknown) -> Tool:
    kind = fields.text("type")
    if kind not in (None, "custom"):
        raise not_one_of(kind, ("custom",), fields.path("type"))
    tool = read_function(fields, "input_schema")
    if tool.parameters is None:
        raise missing(fields.path("input_schema"))
    refuse_unsupported(fields, REFUSED_OF_BLOCKS)
    unknown(fields)
    return tool


def _chosen(choice: Fields, tools: tuple[Tool, ...], unknown: Unknown) -> ToolUse | None:
    kind = choice.required_text("type")
    if kind not in CHOICES:
        raise not_one_of(kind, CHOICES, choice.path("type"))
    if kind in ("any", "tool") and not tools:
        raise invalid_value(choice.path("type"), "it is only allowed when 'tools' are specified.")
    alone = kind != "none" and choice.flag("disable_parallel_tool_use") is True
    demand = Demand.SOME if kind == "any" else Demand.NONE
    use = named(choice, tools) if kind == "tool" else ToolUse(tools, tools, demand)
    unknown(choice)
    if kind == "none" or not tools:
        return None
    return msgspec.structs.replace(use, parallel=not alone)
