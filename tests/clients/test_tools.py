"""Tools that must be called, by several clients: what a constraint forces, the small model does too."""

from typing import Any

import instructor
import openai
import pytest
from pydantic_ai import Agent, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

from tests.clients.city import GREEDY, QUESTION, City
from tests.e2e.house import MODEL, House

FUNCTION: Any = {"name": "save_city", "description": "Saves a city.", "parameters": City.model_json_schema()}
TOOL: Any = {"type": "function", "function": FUNCTION}
NAMED: Any = {"type": "function", "function": {"name": "save_city"}}
# Of a required call the model may write several, and the limit would cut the last.
FORCED: Any = {**GREEDY, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
# Responses name a function without a box around it.
RESPONSE: Any = {
    "model": MODEL,
    "input": QUESTION,
    "tools": [{"type": "function", "strict": False, **FUNCTION}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "temperature": 0,
    "max_output_tokens": 64,
}


@pytest.fixture
def stock() -> openai.OpenAI:
    return openai.OpenAI()


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")], ids=["required", "named"])
def test_openai_calls_a_tool(stock: openai.OpenAI, choice: Any, reason: str) -> None:
    asked = {**FORCED, "tool_choice": choice}
    whole = stock.chat.completions.create(**asked).choices[0]
    (call,) = whole.message.tool_calls or []
    assert (call.type, call.function.name, whole.finish_reason) == ("function", "save_city", reason)
    assert City.model_validate_json(call.function.arguments)
    with stock.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    (again,) = streamed.message.tool_calls or []
    assert (again.function.name, again.function.arguments) == ("save_city", call.function.arguments)
    assert streamed.finish_reason == reason


def test_openai_parses_the_arguments_of_a_strict_tool(stock: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(City)
    asked = {**FORCED, "tools": [tool]}
    (call,) = stock.chat.completions.parse(**asked).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, City)
    with stock.chat.completions.stream(**asked) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [call.function.parsed_arguments]


def test_openai_goes_on_after_a_tool(stock: openai.OpenAI) -> None:
    first = stock.chat.completions.create(**FORCED)
    message = first.choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "saved"}
    messages = [*QUESTION, message.model_dump(exclude_none=True), result]
    answer = stock.chat.completions.create(**{**FORCED, "messages": messages, "tool_choice": "auto", "max_tokens": 4})
    assert answer.usage is not None
    assert first.usage is not None
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens


async def test_openai_calls_a_tool_without_waiting() -> None:
    async with openai.AsyncOpenAI() as client:
        answer = await client.chat.completions.create(**FORCED)
    (call,) = answer.choices[0].message.tool_calls or []
    assert City.model_validate_json(call.function.arguments)


def function_call(response: Any) -> Any:
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert (call.name, response.status) == ("save_city", "completed")
    return call


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "save_city"}], ids=["required", "named"])
def test_openai_calls_a_tool_in_a_response(stock: openai.OpenAI, choice: Any) -> None:
    asked = {**RESPONSE, "tool_choice": choice}
    call = function_call(stock.responses.create(**asked))
    assert City.model_validate_json(call.arguments)
    with stock.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        again = function_call(stream.get_final_response())
    assert "".join(deltas) == again.arguments == call.arguments


def test_openai_parses_the_arguments_of_a_strict_tool_in_a_response(stock: openai.OpenAI) -> None:
    answer = stock.responses.parse(**{**RESPONSE, "tools": [openai.pydantic_function_tool(City, name="save_city")]})
    assert isinstance(function_call(answer).parsed_arguments, City)


def test_openai_goes_on_after_a_tool_in_a_response(stock: openai.OpenAI) -> None:
    first = stock.responses.create(**RESPONSE)
    call = function_call(first)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "saved"}
    asked = [*QUESTION, *[item.model_dump(exclude_none=True) for item in first.output], output]
    answer = stock.responses.create(**{**RESPONSE, "input": asked, "tool_choice": "auto", "max_output_tokens": 16})
    assert first.usage is not None
    assert answer.usage is not None
    assert answer.usage.input_tokens > first.usage.input_tokens


def test_instructor_gives_an_object_by_a_tool_whole_and_as_it_comes() -> None:
    client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode.TOOLS)
    asked: Any = {**GREEDY, "response_model": City, "max_retries": 0}
    assert isinstance(client.chat.completions.create(**asked), City)
    # What comes in parts has another tool's name, and so another prompt: it need not be the same city.
    parts = list(client.chat.completions.create_partial(**asked))
    assert City.model_validate(parts[-1].model_dump())


def test_instructor_gives_an_object_by_a_tool_of_a_response() -> None:
    client: Any = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode.RESPONSES_TOOLS)
    asked = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 64}
    assert isinstance(client.responses.create(**asked, response_model=City, max_retries=0), City)


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_gives_an_object_by_a_tool(model: Any) -> None:
    agent = Agent(model(MODEL), output_type=ToolOutput(City), retries=0)
    settings: Any = {"max_tokens": 64, "temperature": 0, "parallel_tool_calls": False}
    assert isinstance(agent.run_sync("Tell me about Paris.", model_settings=settings).output, City)


def test_litellm_calls_a_tool(house: House) -> None:
    # Imported late: it reads the environment then.
    import litellm  # noqa: PLC0415

    asked = {**FORCED, "model": f"openai/{MODEL}", "tool_choice": NAMED}
    (call,) = litellm.completion(**asked).choices[0].message.tool_calls
    assert City.model_validate_json(call.function.arguments)
    chunks = list(litellm.completion(**asked, stream=True))
    (again,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert (again.function.name, again.function.arguments) == ("save_city", call.function.arguments)
