"""What a body of /v1/messages may hold, what is refused by name, and the chat that it becomes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.anthropic import CountRequest, count, read_count, read_message
from sidecar.protocol.fields import decode_object
from sidecar.protocol.plan import Limits
from sidecar.protocol.requests import ChatRequest, Demand, ToolUse
from sidecar.protocol.speech.dialect import Dialect
from sidecar.settings import Api
from sidecar.tokenizer.messages import PLAIN, Message, Rendering, Tool, ToolCall
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint
from tests.fakes.engine import LetterTokenizer

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
LIMITS = Limits("m", 100, 1000, (0,))
CONTINUED = Rendering(add_generation_prompt=False, continue_final_message=True)
F: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
G: dict[str, Any] = {"type": "custom", "name": "g", "description": "d", "input_schema": {}, "strict": True}
TOOLS = (Tool("f", None, {"type": "object"}), Tool("g", "d", {}, strict=True))
USE: dict[str, Any] = {"type": "tool_use", "id": "a", "name": "f", "input": {"n": "ü"}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "a", "content": "5"}
LENIENT = Api(unknown_fields="ignore")


def read(fields: dict[str, Any], api: Api | None = None) -> ChatRequest:
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": HELLO, **fields}).encode()
    return read_message(decode_object(body), api or Api())


def counted(fields: dict[str, Any], api: Api | None = None) -> CountRequest:
    return read_count(decode_object(json.dumps({"model": "m", "messages": HELLO, **fields}).encode()), api or Api())


def refused(fields: dict[str, Any]) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        read(fields)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


def blocks(*texts: str) -> list[Any]:
    return [{"type": "text", "text": text} for text in texts]


def test_the_least_body_has_anthropic_s_defaults() -> None:
    request = read({})
    assert (request.endpoint, request.messages, request.rendering) == (
        Endpoint.MESSAGES,
        (Message("user", "Hello"),),
        PLAIN,
    )
    options = request.options
    assert (options.temperature, options.top_p, options.top_k, options.seed) == (1.0, 1.0, 0, None)
    assert (options.choices, options.max_tokens, options.max_tokens_param) == (1, 5, "max_tokens")
    assert (options.stream, options.stop, options.logprobs) == (False, (), None)


def test_what_is_given_is_what_is_asked_for() -> None:
    fields = {"temperature": 0, "top_p": 0.5, "top_k": 3, "stop_sequences": ["\n\n", "END"], "stream": True}
    options = read(fields).options
    assert (options.temperature, options.top_p, options.top_k) == (0.0, 0.5, 3)
    assert (options.stop, options.stream) == (("\n\n", "END"), True)
    for name, value in (("temperature", 1), ("top_p", 0), ("top_p", 1), ("top_k", 0), ("max_tokens", 1)):
        assert getattr(read({name: value}).options, name) == value


def test_null_is_absent_for_every_field() -> None:
    names = ["system", "stop_sequences", "temperature", "top_p", "top_k", "stream", "metadata", "thinking", "tools"]
    assert read(dict.fromkeys([*names, "tool_choice"])) == read({})


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {}},
        {"metadata": {"user_id": "u" * 256}},
        {"metadata": {"user_id": None}},
        {"thinking": {"type": "disabled"}},
        {"tools": []},
        {"tool_choice": {"type": "none"}},
        {"tool_choice": {"type": "auto"}},
        {"stop_sequences": []},
    ],
)
def test_what_asks_for_nothing_has_no_effect(fields: dict[str, Any]) -> None:
    assert read(fields) == read({})


@pytest.mark.parametrize("value", [HELLO[0]["content"], blocks("Hel", "lo"), [*blocks("Hello")]])
def test_a_content_is_a_string_or_text_blocks(value: Any) -> None:
    assert read({"messages": [{"role": "user", "content": value}]}).messages == (Message("user", "Hello"),)
    assert read({"system": value}).messages == (Message("system", "Hello"), Message("user", "Hello"))


def test_a_block_of_an_answer_can_be_sent_back_as_the_sdk_has_it() -> None:
    block = {"type": "text", "text": "Hi", "citations": None}
    history = [*HELLO, {"role": "assistant", "content": [block]}, *HELLO]
    assert read({"messages": history}).messages[1] == Message("assistant", "Hi")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=5))
def test_blocks_are_the_string_that_they_make_together(texts: list[str]) -> None:
    split = read({"messages": [{"role": "user", "content": blocks(*texts)}], "system": blocks(*texts)})
    assert split == read({"messages": [{"role": "user", "content": "".join(texts)}], "system": "".join(texts)})


def test_a_last_message_of_the_assistant_s_is_continued() -> None:
    prefill = read({"messages": [*HELLO, {"role": "assistant", "content": "It is"}], "system": "Be brief"})
    assert (prefill.messages[-1], prefill.rendering) == (Message("assistant", "It is"), CONTINUED)
    nothing = read({"messages": [*HELLO, {"role": "assistant", "content": ""}]})
    assert (nothing.messages, nothing.rendering) == ((Message("user", "Hello"),), PLAIN)
    only = read({"messages": [{"role": "assistant", "content": "It is"}]})
    assert (only.messages, only.rendering) == ((Message("assistant", "It is"),), CONTINUED)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": None}, ("model", "missing_required_parameter")),
        ({"max_tokens": None}, ("max_tokens", "missing_required_parameter")),
        ({"max_tokens": 0}, ("max_tokens", "integer_below_min_value")),
        ({"max_tokens": "5"}, ("max_tokens", "invalid_type")),
        ({"max_tokens": True}, ("max_tokens", "invalid_type")),
        ({"temperature": 1.01}, ("temperature", "decimal_above_max_value")),
        ({"temperature": -0.01}, ("temperature", "decimal_below_min_value")),
        ({"top_p": 1.01}, ("top_p", "decimal_above_max_value")),
        ({"top_k": -1}, ("top_k", "integer_below_min_value")),
        ({"top_k": 1.5}, ("top_k", "invalid_type")),
        ({"stream": "yes"}, ("stream", "invalid_type")),
        ({"stop_sequences": "END"}, ("stop_sequences", "invalid_type")),
        ({"stop_sequences": ["a", 1]}, ("stop_sequences[1]", "invalid_type")),
        ({"stop_sequences": ["a", ""]}, ("stop_sequences[1]", "invalid_value")),
        ({"stop_sequences": ["a" * 257]}, ("stop_sequences[0]", "string_above_max_length")),
        ({"stop_sequences": ["a"] * 65}, ("stop_sequences", "array_above_max_length")),
        ({"metadata": []}, ("metadata", "invalid_type")),
        ({"metadata": {"user_id": 1}}, ("metadata.user_id", "invalid_type")),
        ({"metadata": {"user_id": "u" * 257}}, ("metadata.user_id", "string_above_max_length")),
        ({"metadata": {"user": "u"}}, ("metadata.user", "unknown_parameter")),
        ({"thinking": "disabled"}, ("thinking", "invalid_type")),
        ({"thinking": {}}, ("thinking.type", "missing_required_parameter")),
        ({"thinking": {"type": "enabled"}}, ("thinking.budget_tokens", "missing_required_parameter")),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1023}},
            ("thinking.budget_tokens", "integer_below_min_value"),
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024},
            ("thinking.budget_tokens", "invalid_value"),
        ),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, ("thinking.display", "unsupported_parameter")),
        ({"thinking": {"type": "loud"}}, ("thinking.type", "invalid_value")),
        ({"thinking": {"type": "disabled", "budget_tokens": 1}}, ("thinking.budget_tokens", "unknown_parameter")),
        ({"tools": {}}, ("tools", "invalid_type")),
        ({"tools": [F] * 129}, ("tools", "array_above_max_length")),
        ({"tools": [F, F]}, ("tools", "invalid_value")),
        ({"tools": [{**F, "type": "bash_20250124"}]}, ("tools[0].type", "invalid_value")),
        ({"tools": [{"input_schema": {}}]}, ("tools[0].name", "missing_required_parameter")),
        ({"tools": [{**F, "name": "a b"}]}, ("tools[0].name", "invalid_value")),
        ({"tools": [{"name": "f"}]}, ("tools[0].input_schema", "missing_required_parameter")),
        ({"tools": [{**F, "input_schema": {"type": "array"}}]}, ("tools[0].input_schema", "invalid_value")),
        ({"tools": [{**F, "cache_control": {}}]}, ("tools[0].cache_control", "unsupported_parameter")),
        ({"tools": [{**F, "parameters": {}}]}, ("tools[0].parameters", "unknown_parameter")),
        ({"tool_choice": "auto"}, ("tool_choice", "invalid_type")),
        ({"tool_choice": {}}, ("tool_choice.type", "missing_required_parameter")),
        ({"tool_choice": {"type": "required"}}, ("tool_choice.type", "invalid_value")),
        ({"tool_choice": {"type": "any"}}, ("tool_choice.type", "invalid_value")),
        ({"tools": [F], "tool_choice": {"type": "tool"}}, ("tool_choice.name", "missing_required_parameter")),
        ({"tools": [F], "tool_choice": {"type": "tool", "name": "h"}}, ("tool_choice.name", "invalid_value")),
        (
            {"tools": [F], "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
            ("tool_choice.disable_parallel_tool_use", "invalid_type"),
        ),
        (
            {"tools": [F], "tool_choice": {"type": "none", "disable_parallel_tool_use": True}},
            ("tool_choice.disable_parallel_tool_use", "unknown_parameter"),
        ),
        ({"output_config": {"effort": "low"}}, ("output_config.effort", "unknown_parameter")),
        ({"output_config": {"format": {}}}, ("output_config.format.type", "missing_required_parameter")),
        ({"output_config": {"format": {"type": "text"}}}, ("output_config.format.type", "invalid_value")),
        (
            {"output_config": {"format": {"type": "json_schema"}}},
            ("output_config.format.schema", "missing_required_parameter"),
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            ("output_config.format", "invalid_json_schema"),
        ),
        ({"n": 1}, ("n", "unknown_parameter")),
        ({"stop": ["END"]}, ("stop", "unknown_parameter")),
        ({"service_tier": "auto"}, ("service_tier", "unknown_parameter")),
        ({"system": 1}, ("system", "invalid_type")),
        ({"system": []}, ("system", "empty_array")),
        ({"system": [{"type": "image", "source": {}}]}, ("system[0].type", "unsupported_content_type")),
        ({"messages": None}, ("messages", "missing_required_parameter")),
        ({"messages": []}, ("messages", "empty_array")),
        ({"messages": {}}, ("messages", "invalid_type")),
        ({"messages": ["Hello"]}, ("messages[0]", "invalid_type")),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    assert refused(fields) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "Hi"}, ("messages[1].role", "missing_required_parameter")),
        ({"role": "system", "content": "Hi"}, ("messages[1].role", "invalid_value")),
        ({"role": "user"}, ("messages[1].content", "missing_required_parameter")),
        ({"role": "user", "content": 1}, ("messages[1].content", "invalid_type")),
        ({"role": "user", "content": []}, ("messages[1].content", "empty_array")),
        ({"role": "user", "content": ["Hi"]}, ("messages[1].content[0]", "invalid_type")),
        ({"role": "user", "content": [{"text": "Hi"}]}, ("messages[1].content[0].type", "missing_required_parameter")),
        (
            {"role": "user", "content": [{"type": "text"}]},
            ("messages[1].content[0].text", "missing_required_parameter"),
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
            ("messages[1].content[0].type", "unsupported_content_type"),
        ),
        (
            {"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            ("messages[1].content[0].type", "unsupported_content_type"),
        ),
        (
            {"role": "user", "content": [{"type": "tool_result"}]},
            ("messages[1].content[0].tool_use_id", "missing_required_parameter"),
        ),
        (
            {"role": "user", "content": [{**RESULT, "is_error": "yes"}]},
            ("messages[1].content[0].is_error", "invalid_type"),
        ),
        (
            {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]},
            ("messages[1].content[0].content[0].type", "unsupported_content_type"),
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]},
            ("messages[1].content[0].input", "missing_required_parameter"),
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "{}"}]},
            ("messages[1].content[0].input", "invalid_type"),
        ),
        ({"role": "assistant", "content": [USE]}, ("messages", "invalid_value")),
        (
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            ("messages[1].content[0].cache_control", "unsupported_parameter"),
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "Hi", "color": "red"}]},
            ("messages[1].content[0].color", "unknown_parameter"),
        ),
        ({"role": "user", "content": "Hi", "name": "me"}, ("messages[1].name", "unknown_parameter")),
    ],
)
def test_what_is_wrong_in_a_message_is_named_by_its_place(message: Any, expected: tuple[str, str]) -> None:
    assert refused({"messages": [*HELLO, message]}) == expected


@pytest.mark.parametrize(
    ("choice", "use"),
    [
        (None, ToolUse(TOOLS, TOOLS)),
        ({"type": "auto"}, ToolUse(TOOLS, TOOLS)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolUse(TOOLS, TOOLS, parallel=False)),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolUse(TOOLS, TOOLS, Demand.SOME)),
        ({"type": "tool", "name": "g"}, ToolUse(TOOLS, TOOLS[1:], Demand.THIS)),
        ({"type": "none"}, None),
    ],
)
def test_tools_are_told_to_the_model_and_counted(choice: Any, use: ToolUse | None) -> None:
    fields = {"tools": [F, G], "tool_choice": choice}
    told = () if use is None else use.tools
    request = read(fields)
    assert (request.tool_use, request.rendering.tools, counted(fields).rendering.tools) == (use, told, told)


def test_calls_and_results_are_messages_in_their_order() -> None:
    thoughts = [{"type": "thinking", "thinking": "t", "signature": ""}, {"type": "redacted_thinking", "data": "x"}]
    as_the_sdk_has_it = {**USE, "id": "b", "input": {}, "caller": None, "toolset_name": None}
    answer = [*thoughts, *blocks("I ", "look."), USE, as_the_sdk_has_it]
    failed = {**RESULT, "tool_use_id": "b", "content": blocks("no ", "way"), "is_error": True}
    silent = {"type": "tool_result", "tool_use_id": "c", "is_error": False}
    results = [*blocks("See"), RESULT, failed, silent, *blocks("And", " now?")]
    history = [*HELLO, {"role": "assistant", "content": answer}, {"role": "user", "content": results}]
    calls = (ToolCall("a", "f", '{"n": "ü"}'), ToolCall("b", "f", "{}"))
    assert read({"messages": history}).messages == (
        Message("user", "Hello"),
        Message("assistant", "I look.", tool_calls=calls),
        Message("user", "See"),
        Message("tool", "5", tool_call_id="a"),
        Message("tool", "Error: no way", tool_call_id="b"),
        Message("tool", "", tool_call_id="c"),
        Message("user", "And now?"),
    )


@pytest.mark.parametrize(
    ("thinking", "wanted"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "summarized"}, True),
        ({"type": "disabled"}, False),
    ],
)
def test_thoughts_are_told_where_they_are_asked_for_and_the_model_has_them(thinking: Any, wanted: bool) -> None:
    fields = {"thinking": thinking, "max_tokens": 1025}
    assert read(fields).thoughts_wanted is wanted
    asked = counted({"thinking": thinking})
    thoughtful = Limits("m", 100, 1000, (0,), Dialect(thinks=True))
    assert count(asked, LetterTokenizer(), thoughtful).input_tokens == len("u:Hello.")
    if wanted:
        with pytest.raises(ApiError) as caught:
            count(asked, LetterTokenizer(), LIMITS)
        assert (caught.value.param, caught.value.code) == ("thinking.type", "unsupported_value")


def test_an_answer_may_have_the_form_of_a_schema() -> None:
    form = {"type": "json_schema", "schema": {"type": "integer"}}
    grammar = read({"output_config": {"format": form}}).options.grammar
    assert grammar is not None
    assert (json.loads(grammar.source)["type"], grammar.param) == ("integer", "output_config.format")
    assert counted({"output_config": {"format": form}}) == counted({"output_config": {"format": None}}) == counted({})


def test_an_empty_chat_has_nothing_to_answer() -> None:
    assert refused({"messages": [{"role": "assistant", "content": ""}]}) == ("messages", "invalid_value")


def test_unknown_fields_are_named_where_the_settings_let_them_pass() -> None:
    fields = {"n": 2, "metadata": {"x": 1}, "messages": [{"role": "user", "content": "Hello", "name": "me"}]}
    assert read(fields, LENIENT).options.ignored == ("metadata.x", "messages[0].name", "n")
    assert counted({"max_tokens": 5}, LENIENT).ignored == ("max_tokens",)


def test_a_chat_is_counted_as_it_is_run() -> None:
    fields = {"messages": [*HELLO, {"role": "assistant", "content": "It is"}], "system": "Be brief"}
    request, asked = read(fields), counted({**fields, "thinking": {"type": "disabled"}, "tools": []})
    assert (asked.model, asked.messages, asked.rendering) == ("m", request.messages, request.rendering)
    assert count(asked, LetterTokenizer(), LIMITS).input_tokens == len("s:Be brief.u:Hello.a:It is")


def test_a_count_takes_what_reaches_the_prompt_and_no_more() -> None:
    for name, value in (("max_tokens", 5), ("stream", False), ("temperature", 1), ("metadata", {})):
        with pytest.raises(ApiError) as caught:
            counted({name: value})
        assert (caught.value.param, caught.value.code) == (name, "unknown_parameter")
    with pytest.raises(ApiError) as caught:
        count(counted({"system": "a" * 801}), LetterTokenizer(), LIMITS)
    assert caught.value.code == "context_length_exceeded"
