"""The tools of a body, what may be called, and every refusal with its place."""

import json
from typing import Any

import pytest

from sidecar.protocol.fields import decode_object
from sidecar.protocol.json_schema.normalise import MOST_BYTES, MOST_DEPTH
from sidecar.protocol.requests import Demand, ToolUse
from sidecar.protocol.tools import MAX_TOOLS, read_tool_use
from sidecar.tokenizer.messages import Tool
from sidecar.wire.errors import ApiError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
F = Tool("f", "It looks.", SCHEMA)
G = Tool("g")
STRICT = Tool("f", strict=True)


def tool(name: str, **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [tool("f", description="It looks.", parameters=SCHEMA), tool("g", description=None, parameters=None)]
FUNCTIONS = [one["function"] for one in TOOLS]


def read(**fields: object) -> ToolUse | None:
    return read_tool_use(decode_object(json.dumps(fields).encode()))


def refused(**fields: object) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [tool(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, None),
        ({"tools": None, "tool_choice": None, "functions": None, "parallel_tool_calls": None}, None),
        ({"tool_choice": "auto", "parallel_tool_calls": False, "function_call": "none"}, None),
        ({"tools": TOOLS}, ToolUse((F, G), (F, G))),
        ({"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True}, ToolUse((F, G), (F, G))),
        ({"tools": TOOLS, "parallel_tool_calls": False}, ToolUse((F, G), (F, G), parallel=False)),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "g")}, ToolUse((G,), (G,))),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "g", "f", "g")}, ToolUse((F, G), (F, G))),
        ({"tools": TOOLS, "tool_choice": "required"}, ToolUse((F, G), (F, G), Demand.SOME)),
        ({"tools": TOOLS, "tool_choice": tool("g")}, ToolUse((F, G), (G,), Demand.THIS)),
        ({"tools": TOOLS, "tool_choice": allowed("required", "f")}, ToolUse((F,), (F,), Demand.SOME)),
        (
            {"functions": FUNCTIONS, "function_call": {"name": "f"}},
            ToolUse((F, G), (F,), Demand.THIS, parallel=False, legacy=True),
        ),
        ({"tools": [tool("f", strict=True)]}, ToolUse((STRICT,), (STRICT,))),
        ({"functions": FUNCTIONS}, ToolUse((F, G), (F, G), parallel=False, legacy=True)),
        ({"functions": FUNCTIONS, "function_call": "none"}, None),
        ({"tools": [tool("x" * 64)]}, ToolUse((Tool("x" * 64),), (Tool("x" * 64),))),
        ({"tools": [tool("a-B_1", parameters={})]}, ToolUse((Tool("a-B_1", None, {}),), (Tool("a-B_1", None, {}),))),
    ],
)
def test_what_the_model_is_told_of_and_may_call(fields: dict[str, object], use: ToolUse | None) -> None:
    assert read(**fields) == use


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(depth - 1):
        schema = {"a": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": []}, "tools", "empty_array"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [tool(f"f{n}") for n in range(MAX_TOOLS + 1)]}, "tools", "array_above_max_length"),
        ({"tools": [5]}, "tools[0]", "invalid_type"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "invalid_value"),
        ({"tools": [tool("g"), {"type": "function"}]}, "tools[1].function", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
        ({"tools": [tool("")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool("f g")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool("f\n")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool("f", description=5)]}, "tools[0].function.description", "invalid_type"),
        ({"tools": [tool("f", strict="yes")]}, "tools[0].function.strict", "invalid_type"),
        ({"tools": [tool("f", parameters="{}")]}, "tools[0].function.parameters", "invalid_type"),
        ({"tools": [tool("f", parameters={"type": "string"})]}, "tools[0].function.parameters", "invalid_value"),
        (
            {"tools": [tool("f", parameters={"a": "x" * MOST_BYTES})]},
            *("tools[0].function.parameters", "invalid_value"),
        ),
        (
            {"tools": [tool("f", parameters=nested(MOST_DEPTH + 1))]},
            *("tools[0].function.parameters", "invalid_value"),
        ),
        ({"tools": [tool("f"), tool("f")]}, "tools", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": 5}, "tool_choice", "invalid_type"),
        ({"tools": TOOLS, "tool_choice": {}}, "tool_choice.type", "missing_required_parameter"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", "invalid_value"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function"}},
            *("tool_choice.function", "missing_required_parameter"),
        ),
        ({"tools": TOOLS, "tool_choice": tool("h")}, "tool_choice.function.name", "invalid_value"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}},
            *("tool_choice.allowed_tools", "missing_required_parameter"),
        ),
        ({"tools": TOOLS, "tool_choice": allowed("none", "f")}, "tool_choice.allowed_tools.mode", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", "empty_array"),
        (
            {"tools": TOOLS, "tool_choice": allowed("auto", "f", "h")},
            *("tool_choice.allowed_tools.tools[1].function.name", "invalid_value"),
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": 5}, "tool_choice", "invalid_type"),
        ({"tool_choice": tool("f")}, "tool_choice", "invalid_value"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
        ({"functions": []}, "functions", "empty_array"),
        ({"functions": [{}]}, "functions[0].name", "missing_required_parameter"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "functions", "invalid_value"),
        ({"functions": FUNCTIONS, "tools": TOOLS}, "functions", "invalid_value"),
        ({"functions": FUNCTIONS, "function_call": "required"}, "function_call", "invalid_value"),
        ({"functions": FUNCTIONS, "function_call": {"name": "h"}}, "function_call.name", "invalid_value"),
        ({"functions": FUNCTIONS, "function_call": {}}, "function_call.name", "missing_required_parameter"),
        ({"function_call": {"name": "f"}}, "function_call", "invalid_value"),
    ],
)
def test_c1_a_refusal_names_the_place(fields: dict[str, object], param: str, code: str) -> None:
    assert refused(**fields) == (param, code)


def test_a_schema_may_be_as_deep_and_as_long_as_allowed() -> None:
    assert read(tools=[tool("f", parameters=nested(MOST_DEPTH))]) is not None
    assert read(tools=[tool("f", parameters={"a": "x" * (MOST_BYTES - len('{"a": ""}'))})]) is not None
