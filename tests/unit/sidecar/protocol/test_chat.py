"""What a chat body may hold: read, passed over, or refused by name; and the history it brings."""

import json
from typing import Any

import pytest

from sidecar.protocol.chat import read_chat
from sidecar.protocol.fields import decode_object
from sidecar.protocol.requests import ChatRequest
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, ToolCall
from sidecar.wire.errors import ApiError

HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def read(fields: dict[str, Any], api: Api | None = None) -> ChatRequest:
    body = json.dumps({"model": "m", "messages": HELLO, **fields}).encode()
    return read_chat(decode_object(body), api or Api())


def refused(fields: dict[str, Any], api: Api | None = None) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        read(fields, api)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


def test_the_least_body_has_openai_s_defaults() -> None:
    request = read({})
    assert request.messages == (Message("user", "Hello"),)
    options = request.options
    assert (options.temperature, options.top_p, options.top_k, options.seed) == (1.0, 1.0, 0, None)
    assert (options.choices, options.max_tokens, options.stream, options.stop) == (1, None, False, ())


def test_null_is_absent_for_every_field() -> None:
    names = [
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop"),
        *("logprobs", "top_logprobs", "logit_bias", "seed", "response_format", "tools", "tool_choice", "functions"),
        *("parallel_tool_calls", "user", "metadata", "store", "service_tier", "modalities", "audio", "prediction"),
        *("reasoning_effort", "verbosity", "web_search_options", "top_k", "min_p", "ignore_eos", "best_of"),
        *("min_tokens", "allowed_token_ids", "bad_words", "include_stop_str_in_output", "skip_special_tokens"),
        *("return_token_ids", "return_tokens_as_token_ids", "truncate_prompt_tokens", "stop_token_ids"),
    ]
    assert read(dict.fromkeys(names)) == read({})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, (5, "max_tokens")),
        ({"max_completion_tokens": 5.0}, (5, "max_completion_tokens")),
        ({"max_tokens": 5, "max_completion_tokens": 5}, (5, "max_tokens")),
        ({}, (None, "max_completion_tokens")),
    ],
)
def test_either_name_sets_the_output_limit(fields: dict[str, Any], expected: tuple[int | None, str]) -> None:
    options = read(fields).options
    assert (options.max_tokens, options.max_tokens_param) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "safety_identifier": "s" * 64, "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"reasoning_effort": "low", "verbosity": "high", "prediction": {"type": "content"}, "modalities": ["text"]},
        {"response_format": {"type": "text"}, "logprobs": False, "parallel_tool_calls": True},
        {"tool_choice": "none", "function_call": "auto", "best_of": 1},
        {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0},
        {"ignore_eos": False, "min_tokens": 0, "echo": False, "top_k": -1, "chat_template_kwargs": {}},
        {"moderation": {"model": "x"}, "prompt_cache_options": {"mode": "explicit"}},
        {
            "truncate_prompt_tokens": None,
            "return_tokens_as_token_ids": False,
            "bad_words": [],
            "allowed_token_ids": None,
            "skip_special_tokens": True,
            "return_token_ids": False,
        },
        {"stop": [], "stop_token_ids": [], "logit_bias": None, "include_stop_str_in_output": False},
    ],
)
def test_fields_that_ask_for_nothing_pass(fields: dict[str, Any]) -> None:
    assert read(fields).options.ignored == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], ()), ("END", ("END",)), (["", "END"], ("END",)), (list("abcdefghijklmnop"), tuple("abcdefghijklmnop"))],
)
def test_c1_stop_strings_are_one_or_up_to_sixteen(given: object, expected: tuple[str, ...]) -> None:
    assert read({"stop": given}).options.stop == expected


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "Hello"}, "messages", "invalid_type"),
        ({"messages": ["Hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "invalid_type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name", "missing_required_parameter"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
        ({"n": 9}, "n", "integer_above_max_value"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"stop": ["a"] * 17}, "stop", "array_above_max_length"),
        ({"stop": [5]}, "stop[0]", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "unsupported_value"),
        ({"modalities": ["smell"]}, "modalities[0]", "invalid_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
        ({"logit_bias": {"1": None}}, "logit_bias.1", "invalid_type"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 2.1}, "presence_penalty", "decimal_above_max_value"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "decimal_below_min_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
        ({"min_p": 1.1}, "min_p", "decimal_above_max_value"),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
        ({"min_tokens": -1}, "min_tokens", "integer_below_min_value"),
        ({"min_tokens": 1 << 31}, "min_tokens", "integer_above_max_value"),
        ({"min_tokens": "1"}, "min_tokens", "invalid_type"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output", "invalid_type"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens", "invalid_type"),
        ({"return_token_ids": []}, "return_token_ids", "invalid_type"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "empty_array"),
        ({"allowed_token_ids": [5] * 1025}, "allowed_token_ids", "array_above_max_length"),
        ({"allowed_token_ids": [5, -1]}, "allowed_token_ids[1]", "integer_below_min_value"),
        ({"allowed_token_ids": [5.5]}, "allowed_token_ids[0]", "invalid_type"),
        ({"allowed_token_ids": 5}, "allowed_token_ids", "invalid_type"),
        ({"bad_words": "a"}, "bad_words", "invalid_type"),
        ({"bad_words": ["a", 1]}, "bad_words[1]", "invalid_type"),
        ({"bad_words": ["a", ""]}, "bad_words[1]", "invalid_value"),
        ({"bad_words": [" \n"]}, "bad_words[0]", "invalid_value"),
        ({"bad_words": ["a" * 257]}, "bad_words[0]", "string_above_max_length"),
        ({"bad_words": ["a"] * 129}, "bad_words", "array_above_max_length"),
        ({"return_tokens_as_token_ids": "yes"}, "return_tokens_as_token_ids", "invalid_type"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "integer_below_min_value"),
        ({"truncate_prompt_tokens": 1 << 31}, "truncate_prompt_tokens", "integer_above_max_value"),
        ({"truncate_prompt_tokens": "9"}, "truncate_prompt_tokens", "invalid_type"),
        ({"min_tokens": True}, "min_tokens", "invalid_type"),
        ({"stop_token_ids": 5}, "stop_token_ids", "invalid_type"),
        ({"stop_token_ids": [5, -1]}, "stop_token_ids[1]", "integer_below_min_value"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids[0]", "invalid_type"),
        ({"stop_token_ids": [5] * 65}, "stop_token_ids", "array_above_max_length"),
        ({"logit_bias": {"1": "5"}}, "logit_bias.1", "invalid_type"),
        ({"logit_bias": {"\u0661": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": -100.5}}, "logit_bias.1", "decimal_below_min_value"),
        ({"repetition_penalty": 11}, "repetition_penalty", "decimal_above_max_value"),
        ({"min_p": -0.1}, "min_p", "decimal_below_min_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"logprobs": True, "top_logprobs": 2.5}, "top_logprobs", "invalid_type"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"metadata": "x"}, "metadata", "invalid_type"),
        ({"metadata": {str(at): "x" for at in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "invalid_value"),
        ({"metadata": {"a": 5}}, "metadata.a", "invalid_type"),
        ({"service_tier": "first"}, "service_tier", "invalid_value"),
        ({"safety_identifier": "s" * 65}, "safety_identifier", "string_above_max_length"),
        ({"store": 1}, "store", "invalid_type"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temprature": None}, "temprature", "unknown_parameter"),
    ],
)
def test_c1_a_refusal_names_the_field_and_says_what_kind(fields: dict[str, Any], param: str, code: str) -> None:
    assert refused(fields) == (param, code)


def test_without_a_model_the_words_are_openai_s() -> None:
    with pytest.raises(ApiError, match="you must provide a model parameter") as caught:
        read({"model": None})
    assert (caught.value.param, caught.value.code) == ("model", "missing_required_parameter")


def test_unknown_fields_can_be_let_pass_and_are_named() -> None:
    options = read({"x": 1, "stream": True, "stream_options": {"y": 2}}, Api(unknown_fields="ignore")).options
    assert options.ignored == ("stream_options.y", "x")


def test_c1_too_many_messages_are_refused() -> None:
    assert refused({"messages": HELLO * 3}, Api(max_messages=2)) == ("messages", "array_above_max_length")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_content_that_is_not_text_is_refused_by_its_kind(kind: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": kind}]}]
    assert refused({"messages": messages}) == ("messages[0].content[1].type", "unsupported_content_type")


def test_parts_are_joined_as_they_are() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b", "extra": 1}]
    assert read({"messages": [{"role": "user", "content": parts}]}).messages == (Message("user", "a b"),)


def test_an_assistant_s_message_may_be_a_refusal_a_call_or_nothing() -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "call_1"},
        {"role": "assistant", "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "Never."}]},
        {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
    ]
    assert read({"messages": messages}).messages == (
        Message("assistant", "", tool_calls=(ToolCall("call_1", "f", '{"a":1}'),)),
        Message("tool", "5", tool_call_id="call_1"),
        Message("assistant", "No."),
        Message("assistant", "Never."),
        Message("assistant", "", tool_calls=(ToolCall("", "g", "{}"),)),
    )


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({**CALL, "type": "custom"}, "messages[0].tool_calls[0].type"),
        ({**CALL, "id": None}, "messages[0].tool_calls[0].id"),
        ({**CALL, "function": None}, "messages[0].tool_calls[0].function"),
        ({**CALL, "function": {"name": "f", "arguments": {}}}, "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_a_broken_call_in_the_history_is_refused_by_its_place(call: dict[str, Any], param: str) -> None:
    assert refused({"messages": [{"role": "assistant", "tool_calls": [call]}]})[0] == param


def test_of_calls_in_both_spellings_the_new_one_counts_and_both_are_checked() -> None:
    both = {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "g", "arguments": "{}"}}
    (message,) = read({"messages": [both]}).messages
    assert message.tool_calls == (ToolCall("call_1", "f", '{"a":1}'),)
    broken = {**both, "function_call": {"name": "g"}}
    assert refused({"messages": [broken]}) == ("messages[0].function_call.arguments", "missing_required_parameter")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"x"', b"{", b'{"model":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b"\xff", b"[" * 100_000]
)
def test_c3_what_is_not_one_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_chat(decode_object(body), Api())
    assert (caught.value.status, caught.value.code) == (400, None)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities_are_read(fields: dict[str, Any], wanted: int | None) -> None:
    assert read(fields).options.logprobs == wanted


def test_penalties_and_biases_are_read() -> None:
    options = read(
        {
            "presence_penalty": -2,
            "frequency_penalty": 2.0,
            "repetition_penalty": 1.3,
            "min_p": 1,
            "logit_bias": {"5": -100, "0": 2.5},
            "ignore_eos": True,
            "min_tokens": 3,
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            "truncate_prompt_tokens": 9,
            "return_tokens_as_token_ids": True,
            "allowed_token_ids": [5, 6.0],
            "bad_words": ["a", " b"],
            "skip_special_tokens": False,
            "stop_token_ids": [7, 8.0],
        }
    ).options
    assert (options.stop_token_ids, options.min_tokens, options.stop_shown) == ((7, 8), 3, True)
    assert (options.allowed_token_ids, options.bad_words) == ((5, 6), ("a", " b"))
    assert options.truncate_prompt_tokens == 9
    assert (options.specials_shown, options.tokens_told, options.tokens_by_id) == (True, True, True)
    assert (options.presence_penalty, options.frequency_penalty, options.repetition_penalty) == (-2, 2, 1.3)
    assert (options.min_p, options.logit_bias, options.ignore_eos) == (1, {5: -100, 0: 2.5}, True)
