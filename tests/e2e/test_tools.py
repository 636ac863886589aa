"""Tools through both processes and the stock SDK, with a model that was never taught them."""

from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any]) -> Iterator[Any]:
    house = build_house()
    house.start_sidecar()
    house.start_proxy()
    return house


@pytest.fixture(scope="module")
def client(house: Any) -> Any:
    return house.client(str(house.key("open")))


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
