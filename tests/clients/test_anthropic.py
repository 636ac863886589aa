"""Anthropic's own client, for messages."""

from typing import Any

import anthropic
import pytest

from tests.e2e.conftest import MODEL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
# Its methods have no argument for a temperature any more.
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 4, "extra_body": {"temperature": 0}}


@pytest.fixture
def stock() -> anthropic.Anthropic:
    return anthropic.Anthropic()


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content)


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
    usage = stock.messages.create(**GREEDY).usage
    used = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert counted.input_tokens == used


def test_a_stop_sequence_is_told(stock: anthropic.Anthropic) -> None:
    answer = stock.messages.create(**{**GREEDY, "max_tokens": 60}, stop_sequences=["France"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "France")


def test_errors_are_its_own(stock: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        stock.messages.create(**{**GREEDY, "model": "claude-9"})
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        stock.messages.create(**{**GREEDY, "extra_body": {"temperature": 3}})
    with pytest.raises(anthropic.AuthenticationError):
        stock.with_options(api_key="sk-wrong").messages.create(**GREEDY)
