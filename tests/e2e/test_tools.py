"""Tools of chats, through both processes and the stock SDK, with a model that was never taught them."""

import json
from typing import Any

import openai
import pytest

MODEL = "smollm2-135m-instruct"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gives the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
HISTORY: list[Any] = [
    *ASKED,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 64, "tools": [WEATHER]}


@pytest.mark.parametrize("messages", [ASKED, HISTORY])
def test_a_chat_with_tools_is_answered_the_same_streamed_and_not(client: Any, messages: list[Any]) -> None:
    body = {**GREEDY, "messages": messages}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == (whole.choices[0].message.content or "")
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_tools_are_in_the_prompt_and_counted(client: Any) -> None:
    def prompt_tokens(**fields: Any) -> int:
        answer = client.chat.completions.create(**{**GREEDY, "max_tokens": 1, **fields})
        return int(answer.usage.prompt_tokens)

    counted = client.post("/../tokenize", body={"model": MODEL, "messages": ASKED, "tools": [WEATHER]}, cast_to=object)[
        "count"
    ]
    assert prompt_tokens() == counted > prompt_tokens(tool_choice="none") == prompt_tokens(tools=None)


NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time", "description": "Gives the time."}}


def check_arguments(text: str) -> None:
    arguments = json.loads(text)
    assert set(arguments) == {"city", "unit"}
    assert len(arguments["city"]) <= 12
    assert arguments["unit"] in {"celsius", "fahrenheit"}


@pytest.mark.parametrize("temperature", [0, 2])
@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("required", "tool_calls"),
        (NAMED, "stop"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}, "tool_calls"),
    ],
)
def test_a_call_that_must_come_comes_and_fits_its_schema(
    client: Any, choice: Any, reason: str, temperature: float
) -> None:
    body = {**GREEDY, "tool_choice": choice, "parallel_tool_calls": False, "temperature": temperature, "seed": 5}
    whole = client.chat.completions.create(**body).choices[0]
    assert (whole.message.content, whole.finish_reason) == (None, reason)
    (call,) = whole.message.tool_calls
    assert call.function.name == "get_weather"
    check_arguments(call.function.arguments)
    with client.chat.completions.stream(**body) as stream:
        streamed = stream.get_final_completion().choices[0]
    (other,) = streamed.message.tool_calls
    assert (other.function.name, other.function.arguments) == (call.function.name, call.function.arguments)
    assert (streamed.message.content, streamed.finish_reason) == (None, reason)
    assert other.id.startswith("call_")


def test_one_of_several_tools_is_called_and_one_without_parameters_gets_none(client: Any) -> None:
    answer = client.chat.completions.create(
        **{**GREEDY, "tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False}
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {})
    for seed in range(3):
        body = {**GREEDY, "tools": [TIME, WEATHER], "tool_choice": "required", "temperature": 2, "seed": seed}
        for call in client.chat.completions.create(**{**body, "max_tokens": 200}).choices[0].message.tool_calls[:1]:
            assert call.function.name in {"get_time", "get_weather"}


def test_a_function_by_its_older_name_is_called(client: Any) -> None:
    body = {**GREEDY, "functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}}
    del body["tools"]
    choice = client.chat.completions.create(**body).choices[0]
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    check_arguments(choice.message.function_call.arguments)


def test_a_strict_tool_beside_a_format_gives_one_or_the_other(client: Any) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    choice = client.chat.completions.create(**{**GREEDY, "tools": [strict], "response_format": form}).choices[0]
    if choice.message.tool_calls:
        check_arguments(choice.message.tool_calls[0].function.arguments)
    else:
        assert json.loads(choice.message.content) in {"yes", "no"}


def test_a_schema_that_cannot_be_followed_is_refused_by_name(client: Any) -> None:
    odd = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}
    with pytest.raises(openai.BadRequestError, match="'f'") as caught:
        client.chat.completions.create(**{**GREEDY, "tools": [odd], "tool_choice": "required"})
    assert (caught.value.param, caught.value.code) == ("tools", "invalid_json_schema")
