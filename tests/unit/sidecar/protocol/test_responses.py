"""What a body of /v1/responses may hold: read, told back, or refused by name; and the chat that it becomes."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseIncludable

from sidecar.protocol.fields import decode_object
from sidecar.protocol.requests import AllowedTools, Demand, NamedTool, ResponsesRequest, ToolChoice, ToolUse
from sidecar.protocol.responses import INCLUDABLE, LOGPROBS, read_response
from sidecar.settings import Api
from sidecar.tokenizer.messages import PLAIN, Message, Tool, ToolCall
from sidecar.wire.errors import ApiError

CALL: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"n": 1}'}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": "5"}
TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}}
F, G = Tool("f", None, {"type": "object"}), Tool("g", strict=True)
TOOLS = [TOOL, {"type": "function", "name": "g", "strict": True}]


def read(fields: dict[str, Any], api: Api | None = None) -> ResponsesRequest:
    body = json.dumps({"model": "m", "input": "Hello", **fields}).encode()
    return read_response(decode_object(body), api or Api())


def refused(fields: dict[str, Any], api: Api | None = None) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        read(fields, api)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


def test_the_least_body_is_a_user_s_message_with_openai_s_defaults() -> None:
    request = read({})
    assert (request.messages, request.rendering) == ((Message("user", "Hello"),), PLAIN)
    options, asked = request.options, request.asked
    assert (options.temperature, options.top_p, options.choices, options.stream) == (1.0, 1.0, 1, False)
    assert (options.max_tokens, options.max_tokens_param, options.logprobs) == (None, "max_output_tokens", None)
    assert (asked.temperature, asked.top_p, asked.tool_choice, asked.parallel_tool_calls) == (1.0, 1.0, "auto", True)
    assert (asked.metadata, asked.top_logprobs, asked.text.verbosity) == ({}, 0, "medium")


def test_null_is_absent_for_every_field() -> None:
    names = [
        *("instructions", "max_output_tokens", "max_tool_calls", "temperature", "top_p", "stream", "stream_options"),
        *("metadata", "top_logprobs", "include", "reasoning", "truncation", "text", "tools", "tool_choice", "store"),
        *("previous_response_id", "conversation", "background", "prompt", "parallel_tool_calls", "service_tier"),
        *("user", "safety_identifier", "prompt_cache_key"),
    ]
    assert read(dict.fromkeys(names)) == read({})


def test_items_are_messages_in_order_after_the_instructions() -> None:
    items = [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in ("b", "c")]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "d", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "e"},
            ],
        },
        {"role": "system", "content": [{"type": "input_text", "text": ""}]},
    ]
    assert read({"input": items, "instructions": "i"}).messages == (
        Message("system", "i"),
        Message("developer", "a"),
        Message("user", "bc"),
        Message("assistant", "de"),
        Message("system", ""),
    )


def test_calls_are_the_assistant_s_and_reasoning_is_passed_over() -> None:
    call = ToolCall("c", "f", '{"n": 1}')
    text = {"role": "assistant", "content": "I look."}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]}
    parts = [{"type": "input_text", "text": "5"}, {"type": "input_text", "text": "6"}]
    asked = {"role": "user", "content": "a"}
    found = read({"input": [asked, thought, text, {**CALL, "id": "fc_1", "status": "completed"}, CALL, RESULT, CALL]})
    assert found.messages == (
        Message("user", "a"),
        Message("assistant", "I look.", tool_calls=(call, call)),
        Message("tool", "5", tool_call_id="c"),
        Message("assistant", "", tool_calls=(call,)),
    )
    assert read({"input": [asked, CALL, {**RESULT, "output": parts}]}).messages[-1].content == "56"
    assert read({"input": [asked, CALL, thought, CALL]}).messages[-1].tool_calls == (call, call)


@pytest.mark.parametrize(
    ("fields", "use", "choice"),
    [
        ({}, ToolUse((F, G), (F, G)), "auto"),
        ({"tool_choice": "none"}, None, "none"),
        ({"tool_choice": "required"}, ToolUse((F, G), (F, G), Demand.SOME), "required"),
        (
            {"tool_choice": {"type": "function", "name": "g"}, "parallel_tool_calls": False},
            *(ToolUse((F, G), (G,), Demand.THIS, parallel=False), NamedTool("g")),
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "g"}],
                }
            },
            *(ToolUse((G,), (G,), Demand.SOME), AllowedTools("required", (NamedTool("g"),))),
        ),
    ],
)
def test_tools_are_flat_and_told_back_with_the_choice(
    fields: dict[str, Any], use: ToolUse | None, choice: ToolChoice
) -> None:
    request = read({"tools": TOOLS, **fields})
    assert (request.tool_use, request.rendering.tools) == (use, () if use is None else use.tools)
    assert (request.asked.tools, request.asked.tool_choice) == ((F, G), choice)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": 5}, "tools", "invalid_type"),
        ({"tools": [TOOL] * 129}, "tools", "array_above_max_length"),
        ({"tools": [TOOL, TOOL]}, "tools", "invalid_value"),
        ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{**TOOL, "name": "f g"}]}, "tools[0].name", "invalid_value"),
        ({"tools": [{**TOOL, "parameters": []}]}, "tools[0].parameters", "invalid_type"),
        ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict", "invalid_type"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": []}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "h"}}, "tool_choice.name", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "mcp"}}, "tool_choice.type", "invalid_value"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto"}},
            *("tool_choice.tools", "missing_required_parameter"),
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "none", "tools": [TOOL]}},
            *("tool_choice.mode", "invalid_value"),
        ),
        ({"functions": [{"name": "f"}]}, "functions", "unknown_parameter"),
    ],
)
def test_tools_that_cannot_be_used_are_refused_where_they_are_wrong(
    fields: dict[str, Any], param: str, code: str
) -> None:
    assert refused(fields) == (param, code)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_the_parts_of_a_content_say_what_the_whole_says(texts: list[str]) -> None:
    parts = [{"type": "input_text", "text": text} for text in texts]
    whole = read({"input": [{"role": "user", "content": "".join(texts)}]})
    assert read({"input": [{"role": "user", "content": parts}]}) == whole


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (None, "input", "missing_required_parameter"),
        (5, "input", "invalid_type"),
        ([], "input", "empty_array"),
        (["a"], "input[0]", "invalid_type"),
        ([{"content": "a"}], "input[0].role", "missing_required_parameter"),
        ([{"role": "tool", "content": "a"}], "input[0].role", "invalid_value"),
        ([{"role": "user"}], "input[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": 5}], "input[0].content", "invalid_type"),
        ([{"role": "user", "content": []}], "input[0].content", "empty_array"),
        ([{"role": "user", "content": ["a"]}], "input[0].content[0]", "invalid_type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text", None),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "input[0].content[0].type", "invalid_value"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "a"}]}], "input[0].content[0].type", None),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0].type", "unsupported_value"),
        ([{"role": "user", "content": "a"}, {"type": "web_search_call"}], "input[1].type", "unsupported_value"),
        ([{"type": "function_call", "name": "f", "arguments": "{}"}], "input[0].call_id", "missing_required_parameter"),
        ([{"type": "function_call", "call_id": "c", "arguments": "{}"}], "input[0].name", "missing_required_parameter"),
        ([{"type": "function_call", "call_id": "c", "name": "f"}], "input[0].arguments", "missing_required_parameter"),
        ([{**CALL, "arguments": {}}], "input[0].arguments", "invalid_type"),
        ([{"type": "function_call_output", "output": "x"}], "input[0].call_id", "missing_required_parameter"),
        ([{"type": "function_call_output", "call_id": "c"}], "input[0].output", "missing_required_parameter"),
        ([{**RESULT, "output": 5}], "input[0].output", "invalid_type"),
        ([{**RESULT, "output": []}], "input[0].output", "empty_array"),
        ([{**RESULT, "output": [{"type": "output_text", "text": "a"}]}], "input[0].output[0].type", "invalid_value"),
        ([{**RESULT, "output": [{"type": "input_image"}]}], "input[0].output[0].type", "unsupported_content_type"),
        ([{"type": "reasoning", "summary": []}], "input", "invalid_value"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused_where_it_is_wrong(given: Any, param: str, code: str | None) -> None:
    found = refused({"input": given})
    assert found[0] == param
    assert code in (None, found[1])


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_parts_that_are_not_text_are_refused(kind: str) -> None:
    given = [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": kind}]}]
    assert refused({"input": given}) == ("input[0].content[1].type", "unsupported_content_type")


def test_more_items_than_the_settings_allow_are_refused() -> None:
    items = [{"role": "user", "content": "a"}] * 3
    assert len(read({"input": items}, Api(max_messages=3)).messages) == 3
    assert refused({"input": items}, Api(max_messages=2)) == ("input", "array_above_max_length")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("background", True),
        ("conversation", "conv_1"),
        ("max_completion_tokens", 5),
        ("max_tokens", 5),
        ("messages", []),
        ("n", 2),
        ("previous_response_id", "resp_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("reasoning_effort", "low"),
        ("response_format", {"type": "text"}),
        ("store", True),
        ("truncation", "auto"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    assert refused({name: value}) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"background": False, "store": False, "tools": [], "tool_choice": "none", "truncation": "disabled", "n": 1},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {"summary": "auto"}},
        {"include": ["reasoning.encrypted_content"], "top_logprobs": 0, "max_tool_calls": 3},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_fields_that_ask_for_nothing_pass(fields: dict[str, Any]) -> None:
    assert read(fields).options.ignored == ()


def test_a_format_has_the_fields_of_its_schema_in_itself() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}
    grammar = read({"text": {"format": form}}).options.grammar
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.source)["type"], grammar.param) == (
        "json_schema",
        "integer",
        "text.format",
    )
    assert refused({"text": {"format": {**form, "schema": None}}}) == (
        "text.format.schema",
        "missing_required_parameter",
    )
    assert refused({"text": {"format": {**form, "name": "a b"}}}) == ("text.format.name", "invalid_value")
    assert refused({"text": {"format": {**form, "schema": {"not": {}}}}}) == ("text.format", "invalid_json_schema")
    assert refused({"text": {"format": {"type": "json_object"}}, "min_tokens": 2}) == ("min_tokens", "invalid_value")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"instructions": ["a"]}, "instructions", "invalid_type"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": True}, "max_output_tokens", "invalid_type"),
        ({"max_tool_calls": 0}, "max_tool_calls", "integer_below_min_value"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
        ({"metadata": {"a": 5}}, "metadata.a", "invalid_type"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
        ({"include": LOGPROBS}, "include", "invalid_type"),
        ({"include": ["all"]}, "include[0]", "invalid_value"),
        ({"reasoning": "low"}, "reasoning", "invalid_type"),
        ({"reasoning": {"effort": "most"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "invalid_value"),
        ({"reasoning": {"efort": "low"}}, "reasoning.efort", "unknown_parameter"),
        ({"text": {"verbosity": "none"}}, "text.verbosity", "invalid_value"),
        ({"text": {"format": {}}}, "text.format.type", "missing_required_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "text", "strict": True}}}, "text.format.strict", "unknown_parameter"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
        ({"instruction": "a"}, "instruction", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        (
            {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
            "unsupported_parameter",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(fields: dict[str, Any], param: str, code: str) -> None:
    assert refused(fields) == (param, code)


def test_unknown_fields_are_named_wherever_they_are() -> None:
    fields = {"x": 1, "text": {"y": 1}, "reasoning": {"z": 1}}
    assert read(fields, Api(unknown_fields="ignore")).options.ignored == ("x", "text.y", "reasoning.z")


def test_the_effort_reaches_the_template_and_is_told_back() -> None:
    request = read({"reasoning": {"effort": "low", "summary": "concise"}})
    assert request.rendering.reasoning_effort == request.asked.reasoning_effort == "low"
    assert request.asked.reasoning_summary == "concise"


def test_an_effort_that_the_template_s_variables_contradict_is_refused() -> None:
    api = Api(chat_template_kwargs=["reasoning_effort"])
    fields = {"reasoning": {"effort": "low"}, "chat_template_kwargs": {"reasoning_effort": "high"}}
    assert refused(fields, api) == ("reasoning.effort", "invalid_value")


def test_log_probabilities_are_told_where_they_are_included() -> None:
    assert read({"include": [LOGPROBS]}).options.logprobs == 0
    request = read({"include": [LOGPROBS], "top_logprobs": 20})
    assert (request.options.logprobs, request.asked.top_logprobs) == (20, 20)


def test_what_can_be_included_is_what_openai_s_client_knows() -> None:
    assert sorted(INCLUDABLE) == sorted(get_args(ResponseIncludable))


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (None, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
            {"type": "json_schema", "name": "n", "description": None, "schema": {"type": "object"}, "strict": False},
        ),
    ],
)
def test_the_format_is_told_back(form: object, told: object) -> None:
    text = read({"model": "m", "input": "a", "text": {"format": form}}).asked.text
    assert (text.verbosity, text.format) == ("medium", told)
