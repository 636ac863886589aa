"""Structured output by several clients: what a schema forces, the small model does too."""

from typing import Any

import instructor
import openai
import pytest
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

from tests.clients.city import GREEDY, QUESTION, City
from tests.e2e.house import MODEL, House

ASKED: Any = {**GREEDY, "response_model": City, "max_retries": 0}


@pytest.fixture
def stock() -> openai.OpenAI:
    return openai.OpenAI()


def test_openai_parses_a_chat(stock: openai.OpenAI) -> None:
    answer = stock.chat.completions.parse(**GREEDY, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)
    with stock.chat.completions.stream(**GREEDY, response_format=City) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


async def test_openai_parses_a_chat_without_waiting() -> None:
    async with openai.AsyncOpenAI() as client:
        answer = await client.chat.completions.parse(**GREEDY, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


def test_openai_parses_a_response(stock: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 64, "text_format": City}
    answer = stock.responses.parse(**asked)
    assert isinstance(answer.output_parsed, City)
    with stock.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed


def test_instructor_gives_an_object_whole_and_as_it_comes() -> None:
    client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    whole = client.chat.completions.create(**ASKED)
    assert isinstance(whole, City)
    parts = list(client.chat.completions.create_partial(**ASKED))
    assert parts[-1].model_dump() == whole.model_dump()
    assert len(parts) > 1


async def test_instructor_gives_an_object_without_waiting() -> None:
    client = instructor.from_openai(openai.AsyncOpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(await client.chat.completions.create(**ASKED), City)


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_gives_an_object(model: Any) -> None:
    agent = Agent(model(MODEL), output_type=NativeOutput(City), retries=0)
    result = agent.run_sync("Tell me about Paris.", model_settings={"max_tokens": 64, "temperature": 0})
    assert isinstance(result.output, City)


def test_litellm_gives_an_object(house: House) -> None:
    # Imported late: it reads the environment then.
    import litellm  # noqa: PLC0415

    answer = litellm.completion(**{**GREEDY, "model": f"openai/{MODEL}"}, response_format=City)
    assert City.model_validate_json(answer.choices[0].message.content)
