"""Pydantic AI: agents over chats and over responses."""

from typing import Any

import pytest
from pydantic_ai import Agent, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

from tests.e2e.house import MODEL

SETTINGS: Any = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param(MODEL)


def test_an_agent_answers(model: Any) -> None:
    result = Agent(model, instructions="You are brief.").run_sync("Say hello.", model_settings=SETTINGS)
    assert result.output
    assert result.usage.output_tokens > 0


async def test_an_agent_s_answer_streams(model: Any) -> None:
    async with Agent(model).run_stream("Say hello.", model_settings=SETTINGS) as result:
        parts = [part async for part in result.stream_text(delta=True)]
    assert "".join(parts)


def test_a_conversation_goes_on(model: Any) -> None:
    agent = Agent(model)
    first = agent.run_sync("Say hello.", model_settings=SETTINGS)
    second = agent.run_sync("And again.", message_history=first.all_messages(), model_settings=SETTINGS)
    assert len(second.all_messages()) == 4


def test_errors_are_its_own() -> None:
    with pytest.raises(ModelHTTPError) as caught:
        Agent(OpenAIChatModel("gpt-9")).run_sync("Say hello.")
    assert caught.value.status_code == 404
