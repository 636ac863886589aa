"""What admission reads from a body, and what it refuses before anything is reserved."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.body import continued, own_items, read_call, read_question
from proxy.exchange import Call, TextEndpoint
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint


def read(body: bytes | dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_call(endpoint, raw, max_choices=8, max_prompts=4)


def refused(body: bytes | dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, endpoint)
    assert caught.value.status == 400
    return caught.value


def test_the_fields_of_a_chat() -> None:
    call = read({"model": "m", "messages": [{}, {}], "n": 3, "stream": True, "max_tokens": 7, "extra": {"a": [1.5]}})
    assert (call.model, call.messages, call.choices, call.stream) == ("m", 2, 3, True)
    assert (call.max_output_tokens, call.max_output_param) == (7, "max_tokens")
    assert msgspec.json.decode(call.body)["extra"] == {"a": [1.5]}


def test_null_is_absent() -> None:
    call = read({"model": "m", "messages": [], "n": None, "stream": None, "max_tokens": None})
    assert (call.choices, call.stream, call.max_output_tokens) == (1, False, None)


def test_an_integral_float_is_an_integer() -> None:
    assert read({"model": "m", "max_completion_tokens": 5.0}).max_output_tokens == 5


@pytest.mark.parametrize(
    ("fields", "expected", "blamed"),
    [
        ({"max_tokens": 5}, 5, "max_tokens"),
        ({"max_completion_tokens": 5}, 5, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5, "max_tokens"),
        ({}, None, "max_completion_tokens"),
    ],
)
def test_the_two_names_of_the_output_limit(fields: dict[str, Any], expected: int | None, blamed: str) -> None:
    call = read({"model": "m", **fields})
    assert (call.max_output_tokens, call.max_output_param) == (expected, blamed)


@pytest.mark.parametrize(
    ("prompt", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3, 4, 5, 6], 1), ([[1], [2], [3]], 3), (None, 1), ([], 1)]
)
def test_completions_count_prompts_and_default_to_sixteen_tokens(prompt: object, count: int) -> None:
    call = read({"model": "m", "prompt": prompt, "n": 2}, Endpoint.COMPLETIONS)
    assert (call.messages, call.choices, call.max_output_tokens) == (count, 2 * count, 16)


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"input": "a"}, 1),
        ({"input": "a", "instructions": "b"}, 2),
        ({"input": [{}, {}]}, 2),
        ({"input": [{}, {}], "instructions": ""}, 3),
        ({"input": [], "instructions": None}, 0),
        ({}, 1),
    ],
)
def test_a_response_counts_its_items_and_its_instructions(fields: dict[str, Any], messages: int) -> None:
    call = read({"model": "m", "max_output_tokens": 5, "stream": True, **fields}, Endpoint.RESPONSES)
    assert (call.messages, call.choices, call.stream, call.plain) == (messages, 1, True, True)
    assert (call.max_output_tokens, call.max_output_param) == (5, "max_output_tokens")


def test_a_response_has_no_limit_of_output_but_its_own() -> None:
    call = read({"model": "m", "input": "a", "max_tokens": 3, "reasoning": {"effort": "low"}}, Endpoint.RESPONSES)
    assert (call.max_output_tokens, call.plain) == (None, False)
    for wrong, code in ((0, "integer_below_min_value"), ("5", "invalid_type")):
        refusal = refused({"model": "m", "input": "a", "max_output_tokens": wrong}, Endpoint.RESPONSES)
        assert (refusal.param, refusal.code) == ("max_output_tokens", code)


@pytest.mark.parametrize(("given", "count"), [("a", 1), (["a"] * 40, 40), ([1, 2, 3], 1), ([[1], [2]], 2), ([], 1)])
def test_embeddings_count_their_inputs_and_have_no_output(given: object, count: int) -> None:
    call = read({"model": "m", "input": given, "max_tokens": 5, "stream": True}, Endpoint.EMBEDDINGS)
    assert (call.messages, call.choices, call.max_output_tokens, call.stream) == (count, 1, 0, False)
    # What has no meaning here is the sidecar's to refuse.
    assert msgspec.json.decode(call.body)["stream"] is True


def test_all_that_is_produced_counts_also_what_is_not_given() -> None:
    assert read({"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 4}, Endpoint.COMPLETIONS).choices == 8
    assert read({"model": "m", "prompt": "a", "n": 3, "best_of": None}, Endpoint.COMPLETIONS).choices == 3
    assert refused({"model": "m", "prompt": "a", "best_of": 9}, Endpoint.COMPLETIONS).param == "best_of"
    assert refused({"model": "m", "prompt": "a", "best_of": True}, Endpoint.COMPLETIONS).code == "invalid_type"


def test_an_echo_alone_reserves_a_token_and_is_forwarded_as_it_is() -> None:
    call = read({"model": "m", "prompt": "a", "echo": True, "max_tokens": 0}, Endpoint.COMPLETIONS)
    assert call.max_output_tokens == 1
    assert msgspec.json.decode(call.body)["max_tokens"] == 0
    for fields in ({"max_tokens": 0}, {"max_tokens": 0, "echo": False}, {"max_tokens": -1, "echo": True}):
        refusal = refused({"model": "m", "prompt": "a", **fields}, Endpoint.COMPLETIONS)
        assert (refusal.param, refusal.code) == ("max_tokens", "integer_below_min_value")
    assert refused({"model": "m", "messages": [], "echo": True, "max_tokens": 0}).param == "max_tokens"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("chat_template_kwargs", {"thinking": True}),
        ("reasoning_effort", "low"),
        ("documents", [{"text": "a"}]),
        ("tools", [{"type": "function"}]),
        ("functions", [{"name": "f"}]),
        ("messages", [{"role": "tool", "content": "5", "tool_call_id": "c"}]),
        ("messages", [{"role": "function", "content": "5", "name": "f"}]),
        ("messages", [{"role": "user"}, {"role": "assistant", "tool_calls": []}]),
        ("messages", [{"role": "assistant", "function_call": {}}]),
    ],
)
def test_a_chat_is_plain_unless_its_template_is_given_more_than_messages(field: str, value: object) -> None:
    plain = [{"role": "assistant", "content": "a", "tool_calls": None}, 5]
    assert read({"model": "m", field: None, "messages": plain}).plain
    assert not read({"model": "m", "messages": [], field: value}).plain


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"model":NaN}',
        b'{"model":"m","x":Infinity}',
        b'{"model":"m","x":1e999}',
        b'{"model":"\xff"}',
        b'{"model":"m"} x',
        b"\xef\xbb\xbf{}",
        b'{"model":"\\ud800"}',
        b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model":"m","x":' + b"9" * 5000 + b"}",
    ],
)
def test_c3_what_is_not_one_json_object_is_refused_without_a_field(body: bytes) -> None:
    error = refused(body)
    assert (error.code, error.param) == (None, None)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"model": "m", "stream": 1}, "stream", "invalid_type"),
        ({"model": "m", "n": True}, "n", "invalid_type"),
        ({"model": "m", "n": "2"}, "n", "invalid_type"),
        ({"model": "m", "n": 1.5}, "n", "invalid_type"),
        ({"model": "m", "n": 0}, "n", "integer_below_min_value"),
        ({"model": "m", "n": 9}, "n", "integer_above_max_value"),
        ({"model": "m", "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"model": "m", "max_tokens": 2**64}, "max_tokens", "integer_above_max_value"),
        ({"model": "m", "max_completion_tokens": False}, "max_completion_tokens", "invalid_type"),
        ({"model": "m", "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ],
)
def test_c1_a_wrong_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refused(fields)
    assert (error.param, error.code) == (param, code)


def test_c1_too_many_prompts_are_refused() -> None:
    error = refused({"model": "m", "prompt": ["a"] * 5}, Endpoint.COMPLETIONS)
    assert (error.param, error.code) == ("prompt", "array_above_max_length")


def test_c3_the_forwarded_body_is_ours_and_not_the_clients_bytes() -> None:
    call = read(b'{ "model":"m",  "stream":false, "stream":true, "messages":[] }')
    assert call.body == b'{"model":"m","stream":true,"messages":[]}'
    assert call.stream


@pytest.mark.parametrize("usable", [[], ["m"], ["a", "b"]])
def test_a_question_is_for_the_model_that_it_names(usable: list[str]) -> None:
    question = read_question(TextEndpoint.TOKENIZE, b'{"model":"m","prompt":"a","prompt":"b"}', usable)
    assert (question.endpoint, question.model) == (TextEndpoint.TOKENIZE, "m")
    assert msgspec.json.decode(question.body) == {"model": "m", "prompt": "b"}


@pytest.mark.parametrize("body", [b'{"tokens":[1]}', b'{"tokens":[1],"model":null}'])
def test_a_question_that_names_no_model_is_for_the_only_one(body: bytes) -> None:
    question = read_question(TextEndpoint.DETOKENIZE, body, ["m"])
    assert question.model == "m"
    assert msgspec.json.decode(question.body) == {"model": "m", "tokens": [1]}
    for usable in ([], ["m", "n"]):
        with pytest.raises(ApiError) as caught:
            read_question(TextEndpoint.DETOKENIZE, body, usable)
        assert (caught.value.status, caught.value.param) == (400, "model")
        assert caught.value.code == "missing_required_parameter"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[1]", None),
        (b'{"model":5}', "invalid_type"),
        (b'{"model":""}', "missing_required_parameter"),
        (b'{"prompt":NaN}', None),
    ],
)
def test_a_question_that_cannot_be_read_is_refused(body: bytes, code: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read_question(TextEndpoint.TOKENIZE, body, ["m"])
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    ("fields", "messages", "plain"),
    [
        ({"messages": [{"role": "user"}]}, 1, True),
        ({"messages": [{"role": "user"}], "system": "S"}, 2, True),
        ({"messages": [{"role": "user"}, {"role": "assistant"}]}, 2, False),
        ({"messages": [{"role": "assistant"}, {"role": "user"}], "system": None}, 2, True),
        ({"messages": [1]}, 1, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, 1]}]}, 1, True),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, 1, False),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}, {"role": "user"}]}, 2, False),
        ({"messages": [{"role": "user"}], "tools": [{}]}, 1, False),
        ({"messages": []}, 0, True),
        ({"messages": {}}, 0, True),
        ({}, 0, True),
    ],
)
def test_the_fields_of_a_message_of_anthropic_s(fields: dict[str, Any], messages: int, plain: bool) -> None:
    call = read({"model": "m", "max_tokens": 5, "stream": True, **fields}, Endpoint.MESSAGES)
    assert (call.messages, call.plain) == (messages, plain)
    assert (call.choices, call.stream, call.max_output_tokens, call.max_output_param) == (1, True, 5, "max_tokens")


def test_a_message_has_one_name_for_its_output_limit() -> None:
    call = read({"model": "m", "max_completion_tokens": 7}, Endpoint.MESSAGES)
    assert (call.max_output_tokens, call.max_output_param) == (None, "max_tokens")
    assert refused({"model": "m", "max_tokens": 0}, Endpoint.MESSAGES).param == "max_tokens"


def test_a_count_of_anthropic_s_names_its_model() -> None:
    body = b'{"messages":[]}'
    with pytest.raises(ApiError) as caught:
        read_question(TextEndpoint.COUNT_TOKENS, body, ["m"])
    assert caught.value.param == "model"
    assert read_question(TextEndpoint.TOKENIZE, body, ["m"]).model == "m"


def response_call(**fields: Any) -> Call:
    return read({"model": "m", **fields}, Endpoint.RESPONSES)


@pytest.mark.parametrize("store", [None, True, False])
def test_what_concerns_the_store_is_taken_out_of_a_response_s_body(store: bool | None) -> None:
    call = response_call(input="a", store=store, previous_response_id="resp_1")
    assert (call.store, call.previous_id) == (store, "resp_1")
    assert msgspec.json.decode(call.body) == {"model": "m", "input": "a"}
    chat = read({"model": "m", "store": True, "previous_response_id": 1})
    assert (chat.store, chat.previous_id) == (None, None)
    assert msgspec.json.decode(chat.body)["store"] is True


@pytest.mark.parametrize(("name", "value"), [("store", 1), ("store", "true"), ("previous_response_id", ["resp_1"])])
def test_a_wrong_type_about_the_store_is_refused(name: str, value: Any) -> None:
    refusal = refused({"model": "m", "input": "a", name: value}, Endpoint.RESPONSES)
    assert (refusal.code, refusal.param) == ("invalid_type", name)


ITEMS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "x"]), "content": st.text(max_size=5)}), max_size=4
)


@given(earlier=ITEMS, own=ITEMS.filter(bool) | st.text(max_size=5))
def test_a_continued_call_is_what_was_before_and_its_own(earlier: list[dict[str, str]], own: Any) -> None:
    call = response_call(input=own, instructions="i", top_p=0.5)
    items = [msgspec.Raw(msgspec.json.encode(item)) for item in earlier]
    longer = continued(call, items, 10_000)
    mine = own if isinstance(own, list) else [text_item(own)]
    body = msgspec.json.decode(longer.body)
    assert body == {"model": "m", "instructions": "i", "top_p": 0.5, "input": [*earlier, *mine]}
    assert (longer.messages, longer.earlier_items) == (len(earlier) + len(mine) + 1, len(earlier))
    assert msgspec.json.decode(own_items(longer)) == msgspec.json.decode(own_items(call)) == mine


@pytest.mark.parametrize("kind", ["function_call", "function_call_output"])
def test_a_response_with_calls_before_it_is_not_plain(kind: str) -> None:
    assert response_call(input=[{"type": "message"}, {"role": "user"}, {"type": "reasoning"}, 5]).plain
    assert not response_call(input=[{"role": "user"}, {"type": kind}]).plain
    call = response_call(input="a")
    for earlier, plain in (({"role": "user"}, True), ({"type": "reasoning"}, True), ({"type": kind}, False)):
        assert continued(call, [msgspec.Raw(msgspec.json.encode(earlier))], 10_000).plain is plain
    assert not continued(response_call(input="a", tools=[{}]), [], 10_000).plain


def text_item(words: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}


@pytest.mark.parametrize("given", [{}, {"input": None}, {"input": []}, {"input": 5}, {"input": {"role": "user"}}])
def test_what_holds_no_items_is_not_continued(given: dict[str, Any]) -> None:
    call = response_call(**given)
    assert continued(call, [msgspec.Raw(b"{}")], 10_000) is call


def test_a_continued_call_has_the_size_of_a_body_at_most() -> None:
    call, items = response_call(input="a"), [msgspec.Raw(b'{"a":1}')]
    size = len(continued(call, items, 10_000).body)
    assert len(continued(call, items, size).body) == size
    with pytest.raises(ApiError) as caught:
        continued(call, items, size - 1)
    assert (caught.value.status, caught.value.param) == (413, "previous_response_id")
