"""Tools of /v1/responses and /v1/messages, through both processes, with a model that was never taught them."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from tests.e2e.test_tools import ASKED, HISTORY, MODEL, WEATHER, check_arguments

FLAT: dict[str, Any] = {"type": "function", **WEATHER["function"], "strict": True}
NAMED: dict[str, Any] = {"type": "function", "name": "get_weather"}
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 64, "tools": [FLAT]}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": WEATHER["function"]["description"],
    "input_schema": WEATHER["function"]["parameters"],
}
RESULT: dict[str, Any] = {"type": "function_call_output", "output": "sunny, 21 degrees"}


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    house = build_house({"storing": {"response_retention_days": 30}, "open": {}}, sidecars("int8"))
    house.start_proxy()
    return house


@pytest.fixture(scope="module")
def client(house: Any) -> Any:
    return house.client(str(house.key("storing")))


def message(house: Any, key: str, **fields: Any) -> Any:
    body = {"model": MODEL, "messages": ASKED, "max_tokens": 64, "temperature": 0, "tools": [TOOL], **fields}
    url = f"http://127.0.0.1:{house.port}/v1/messages"
    return httpx2.post(url, json=body, headers={"x-api-key": key}, timeout=60)


@pytest.mark.parametrize("choice", ["required", NAMED, {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}])
def test_a_response_calls_what_it_must_streamed_and_not(client: Any, choice: Any) -> None:
    body = {**GREEDY, "input": "What is the weather in Paris?", "tool_choice": choice, "parallel_tool_calls": False}
    whole = client.responses.create(**body)
    (call,) = whole.output
    assert (call.type, call.name, call.status, whole.status) == (
        "function_call",
        "get_weather",
        "completed",
        "completed",
    )
    check_arguments(call.arguments)
    assert whole.tools[0].to_dict() == FLAT
    with client.responses.stream(**body) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert "".join(event.delta for event in events if event.type.endswith("arguments.delta")) == call.arguments
    (other,) = streamed.output
    assert (other.name, other.arguments) == (call.name, call.arguments)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools_goes_on_from_what_is_stored(house: Any, client: Any, stream: bool) -> None:
    def ask(**fields: Any) -> Any:
        answer: Any = client.responses.create(**GREEDY, stream=stream, **fields)
        return list(answer)[-1].response if stream else answer

    first = ask(input="What is the weather in Paris?", tool_choice="required", parallel_tool_calls=False)
    (call,) = first.output
    result = {**RESULT, "call_id": call.call_id}
    second = ask(input=[result], previous_response_id=first.id)
    third = ask(input="And in Rome?", previous_response_id=second.id)
    asked: Any = {"role": "user", "content": "What is the weather in Paris?"}
    more: Any = {"role": "user", "content": "And in Rome?"}
    again = ask(input=[asked, *first.output, result, *second.output, more], store=False)
    assert third.usage.input_tokens == again.usage.input_tokens
    assert third.output_text == again.output_text
    (listed,) = client.responses.input_items.list(second.id).data
    assert (listed.type, listed.call_id, listed.output) == ("function_call_output", call.call_id, result["output"])
    assert client.responses.retrieve(first.id).output[0].to_dict() == call.to_dict()


def test_earlier_calls_of_a_response_are_those_of_a_chat(client: Any) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    items = [*ASKED, thought, call, {**RESULT, "call_id": "call_1"}]
    response = client.responses.create(**GREEDY, input=items)
    chat = client.chat.completions.create(model=MODEL, messages=HISTORY, tools=[WEATHER], max_tokens=1)
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_a_wrong_item_behind_a_stored_conversation_is_named_by_its_own_place(client: Any) -> None:
    first = client.responses.create(**GREEDY, input="Hi")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**GREEDY, input=[RESULT], previous_response_id=first.id)
    assert caught.value.param == "input[0].call_id"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_message_calls_what_it_must_streamed_and_not(house: Any, choice: dict[str, Any]) -> None:
    key = str(house.key("open"))
    fields = {"tool_choice": {**choice, "disable_parallel_tool_use": True}}
    whole = message(house, key, **fields).json()
    (call,) = whole["content"]
    assert (call["type"], call["name"], whole["stop_reason"]) == ("tool_use", "get_weather", "tool_use")
    check_arguments(json.dumps(call["input"]))
    frames = message(house, key, **fields, stream=True).text.split("\n\n")
    told = [json.loads(frame.partition("data: ")[2]) for frame in frames if frame.startswith("event: ")]
    pieces = [event["delta"]["partial_json"] for event in told if event["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == call["input"]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"


def test_earlier_calls_of_a_message_are_those_of_a_chat_and_counted(house: Any, client: Any) -> None:
    key = str(house.key("open"))
    call = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": RESULT["output"]}
    messages = [*ASKED, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    usage = message(house, key, messages=messages, max_tokens=1).json()["usage"]
    counted = httpx2.post(
        f"http://127.0.0.1:{house.port}/v1/messages/count_tokens",
        json={"model": MODEL, "messages": messages, "tools": [TOOL]},
        headers={"x-api-key": key},
        timeout=60,
    ).json()["input_tokens"]
    chat = client.chat.completions.create(model=MODEL, messages=HISTORY, tools=[WEATHER], max_tokens=1)
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"] == chat.usage.prompt_tokens


def test_a_message_may_have_the_form_of_a_schema(house: Any) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}
    answer = message(house, str(house.key("open")), tools=None, output_config={"format": form}).json()
    assert json.loads(answer["content"][0]["text"]) in {"yes", "no"}
