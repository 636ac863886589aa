"""The stock OpenAI SDK's `responses` against a running house: whole, streamed, by its helper, and in the ledger."""

from typing import Any

import openai
import pytest

MODEL = "smollm2-135m-instruct"
URL = "/v1/responses"
QUESTION = "What is the capital of France?"
GREEDY: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 24}


def test_a_response_says_what_a_chat_says_and_costs_the_same(house: Any, client: openai.OpenAI) -> None:
    answer = client.responses.create(**GREEDY, instructions="Be brief.", metadata={"a": "b"})
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=24)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.object, answer.model, answer.metadata) == ("response", MODEL, {"a": "b"})
    assert answer.usage is not None
    assert chat.usage is not None
    used = (answer.usage.input_tokens, answer.usage.output_tokens)
    assert used == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    ledger = house.ledger()
    row, beside = ledger[answer._request_id], ledger[chat._request_id]
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == (URL, *used)
    names = ("state", "reason", "prompt_tokens", "completion_tokens")
    assert [row[name] for name in names] == [beside[name] for name in names]


def test_a_stream_gives_the_same_response(house: Any, client: openai.OpenAI) -> None:
    whole = client.responses.create(**GREEDY)
    stream = client.responses.create(**GREEDY, stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert text == last.response.output_text == whole.output_text
    assert (last.type, last.response.status) == (f"response.{whole.status}", whole.status)
    assert last.response.usage.output_tokens == whole.usage.output_tokens
    row = house.ledger()[stream.response.headers["x-request-id"]]
    assert (row["state"], row["reason"]) == ("settled", "complete")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (whole.usage.input_tokens, whole.usage.output_tokens)


def test_the_helper_follows_the_stream_to_its_final_response(client: openai.OpenAI) -> None:
    asked: Any = {**GREEDY, "max_output_tokens": 400}
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == "".join(deltas)
    assert "Paris" in final.output_text


async def test_the_asynchronous_client_streams(house: Any) -> None:
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=house.key("open"), max_retries=0) as client:
        stream = await client.responses.create(**GREEDY, stream=True)
        types = [event.type async for event in stream]
    assert types[0] == "response.created"
    assert types[-1] in {"response.completed", "response.incomplete"}


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(**{**GREEDY, "max_output_tokens": 2})
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_an_earlier_answer_s_items_are_taken_back(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY)
    again: Any = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And of Spain?"}]
    assert client.responses.create(**{**GREEDY, "input": again}).output_text


def test_log_probabilities_are_told_where_they_are_included(client: openai.OpenAI) -> None:
    answer = client.responses.create(**GREEDY, include=["message.output_text.logprobs"], top_logprobs=2)
    told: Any = answer.output[0]
    found = told.content[0].logprobs
    assert "".join(one.token for one in found) == answer.output_text
    assert all(len(one.top_logprobs) == 2 for one in found)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": "low"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
def test_what_is_not_supported_is_the_sdk_s_own_error(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**GREEDY, **fields})
    assert caught.value.param == param
