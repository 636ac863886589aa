"""Anthropic's own client, for messages."""

import json
from typing import Any

import anthropic
import pytest

from tests.clients.city import City
from tests.e2e.house import MODEL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
# Its methods have no argument for a temperature any more.
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 4, "extra_body": {"temperature": 0}}
TOOL: Any = {"name": "save_city", "description": "Saves a city.", "input_schema": City.model_json_schema()}
# Of a call that must come the model may write several, and the limit would cut the last.
FORCED: Any = {
    **GREEDY,
    "max_tokens": 64,
    "tools": [TOOL],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
}


@pytest.fixture
def stock() -> anthropic.Anthropic:
    return anthropic.Anthropic()


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content)


def call_of(message: Any) -> Any:
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert (call.name, message.stop_reason) == ("save_city", "tool_use")
    return call


def prompt_tokens(message: Any) -> int:
    usage = message.usage
    return int(usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0))


def test_a_message_whole_streamed_and_by_the_stream_s_helper(stock: anthropic.Anthropic) -> None:
    whole = stock.messages.create(**GREEDY, system="You are brief.")
    assert (whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "max_tokens")
    assert whole.usage.output_tokens == 4
    events = list(stock.messages.create(**GREEDY, system="You are brief.", stream=True))
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    with stock.messages.stream(**GREEDY, system="You are brief.") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(whole)
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_a_message_without_waiting() -> None:
    async with anthropic.AsyncAnthropic() as client:
        whole = await client.messages.create(**GREEDY)
        async with client.messages.stream(**GREEDY) as stream:
            text = "".join([part async for part in stream.text_stream])
    assert text == text_of(whole)


def test_tokens_are_counted_as_they_are_used(stock: anthropic.Anthropic) -> None:
    counted = stock.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens == prompt_tokens(stock.messages.create(**GREEDY))


def test_a_stop_sequence_is_told(stock: anthropic.Anthropic) -> None:
    answer = stock.messages.create(**{**GREEDY, "max_tokens": 60}, stop_sequences=["France"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "France")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "save_city"}], ids=["any", "tool"])
def test_a_tool_is_called(stock: anthropic.Anthropic, choice: Any) -> None:
    asked = {**FORCED, "tool_choice": {**choice, "disable_parallel_tool_use": True}}
    call = call_of(stock.messages.create(**asked))
    assert City.model_validate(call.input)
    with stock.messages.stream(**asked) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(pieces)) == call_of(final).input == call.input


def test_a_conversation_goes_on_after_a_tool(stock: anthropic.Anthropic) -> None:
    first = stock.messages.create(**FORCED)
    result = {"type": "tool_result", "tool_use_id": call_of(first).id, "content": "saved"}
    messages: Any = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    counted = stock.messages.count_tokens(model=MODEL, messages=messages, tools=[TOOL])
    answer = stock.messages.create(**{**GREEDY, "messages": messages, "tools": [TOOL]})
    assert prompt_tokens(answer) == counted.input_tokens > prompt_tokens(first)


def test_errors_are_its_own(stock: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        stock.messages.create(**{**GREEDY, "model": "claude-9"})
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        stock.messages.create(**{**GREEDY, "extra_body": {"temperature": 3}})
    with pytest.raises(anthropic.AuthenticationError):
        stock.with_options(api_key="sk-wrong").messages.create(**GREEDY)
