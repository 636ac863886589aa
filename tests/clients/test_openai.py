"""OpenAI's own client: chats, completions, responses and embeddings, whole and streamed, with and without asyncio."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.clients.conftest import EMBEDDER
from tests.e2e.house import MODEL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 16}
RESPONSE: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 16}


@pytest.fixture
def stock() -> openai.OpenAI:
    """As its documentation makes one."""
    return openai.OpenAI()


@pytest.fixture
async def asynchronous() -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI() as client:
        yield client


def test_a_chat_whole_streamed_and_by_the_stream_s_helper(stock: openai.OpenAI) -> None:
    whole = stock.chat.completions.create(**GREEDY)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(stock.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    with stock.chat.completions.stream(**GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == text


async def test_a_chat_without_waiting(asynchronous: openai.AsyncOpenAI) -> None:
    whole = await asynchronous.chat.completions.create(**GREEDY)
    stream = await asynchronous.chat.completions.create(**GREEDY, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_log_probabilities_and_several_choices(stock: openai.OpenAI) -> None:
    asked: Any = {**GREEDY, "max_tokens": 4, "temperature": 1.0, "seed": 7}
    answer = stock.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


def test_a_completion(stock: openai.OpenAI) -> None:
    answer = stock.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = list(stock.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_a_response_whole_streamed_and_by_the_stream_s_helper(stock: openai.OpenAI) -> None:
    whole = stock.responses.create(**RESPONSE)
    events = list(stock.responses.create(**RESPONSE, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{whole.status}"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    with stock.responses.stream(**{**RESPONSE, "max_output_tokens": 400}) as stream:
        stream.until_done()
        assert stream.get_final_response().status == "completed"


async def test_a_response_without_waiting(asynchronous: openai.AsyncOpenAI) -> None:
    whole = await asynchronous.responses.create(**RESPONSE)
    events = [event async for event in await asynchronous.responses.create(**RESPONSE, stream=True)]
    assert events[-1].response.output_text == whole.output_text


@pytest.mark.parametrize("encoding", ["float", "base64", openai.omit])
def test_embeddings(stock: openai.OpenAI, encoding: Any) -> None:
    answer = stock.embeddings.create(model=EMBEDDER, input=["a cat", "a kitten"], encoding_format=encoding)
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    if encoding != "base64":
        assert sum(number**2 for number in answer.data[0].embedding) == pytest.approx(1, abs=1e-4)
    short = stock.embeddings.create(model=EMBEDDER, input="a cat", dimensions=64)
    assert len(short.data[0].embedding) == 64


async def test_embeddings_without_waiting(asynchronous: openai.AsyncOpenAI) -> None:
    answer = await asynchronous.embeddings.create(model=EMBEDDER, input="a cat")
    assert len(answer.data[0].embedding) == 384


def test_models(stock: openai.OpenAI) -> None:
    assert {model.id for model in stock.models.list()} == {MODEL, EMBEDDER}
    assert stock.models.retrieve(MODEL).id == MODEL


def test_errors_are_its_own(stock: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        stock.chat.completions.create(**{**GREEDY, "model": "gpt-9"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        stock.chat.completions.create(**{**GREEDY, "temperature": 3})
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        stock.with_options(api_key="sk-wrong").models.list()


def test_an_answer_that_is_left_is_stopped(stock: openai.OpenAI) -> None:
    with stock.chat.completions.create(**{**GREEDY, "max_tokens": 4000}, stream=True) as stream:
        assert next(iter(stream)).choices
    # What is still running at the end of all tests fails them.
