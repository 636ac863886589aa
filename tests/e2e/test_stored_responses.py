"""The stock OpenAI SDK's stored responses against a running house: kept, gone on from, deleted, and whose they are."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

MODEL = "smollm2-135m-instruct"
ASKED: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 16}


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    house = build_house({"storing": {"response_retention_days": 30}, "open": {}}, sidecars("int8"))
    house.start_proxy()
    return house


@pytest.fixture(scope="module")
def client(house: Any) -> openai.OpenAI:
    client: openai.OpenAI = house.client(house.key("storing"))
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_as_if_its_items_were_sent_again(client: openai.OpenAI, stream: bool) -> None:
    def ask(words: str, **fields: Any) -> Any:
        answer: Any = client.responses.create(**ASKED, input=words, stream=stream, **fields)
        return list(answer)[-1].response if stream else answer

    first = ask("What is the capital of France?", store=True, instructions="Be brief.")
    second = ask("And of Spain?", previous_response_id=first.id)
    third = ask("And of Italy?", previous_response_id=second.id, store=False)
    assert (first.store, second.store, third.store) == (True, True, False)
    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
    items: Any = [
        {"role": "user", "content": "What is the capital of France?"},
        *first.output,
        {"role": "user", "content": "And of Spain?"},
        *second.output,
        {"role": "user", "content": "And of Italy?"},
    ]
    again = client.responses.create(**ASKED, input=items, store=False)
    assert third.output_text == again.output_text
    assert third.usage.input_tokens == again.usage.input_tokens
    assert client.responses.retrieve(second.id).to_dict() == second.to_dict()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)


def test_what_is_charged_is_the_whole_conversation(house: Any, client: openai.OpenAI) -> None:
    first = client.responses.create(**ASKED, input="What is the capital of France?")
    second = client.responses.create(**ASKED, input="Why?", previous_response_id=first.id)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    row = house.ledger()[second._request_id]
    assert (row["state"], row["prompt_tokens"]) == ("settled", second.usage.input_tokens)


def test_log_probabilities_are_stored_and_are_no_part_of_the_next_prompt(client: openai.OpenAI) -> None:
    included: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    first = client.responses.create(**ASKED, **included, input="What is the capital of France?")
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    assert client.responses.create(**ASKED, input="Why?", previous_response_id=first.id).output_text


def test_what_was_asked_is_listed_page_by_page(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": f"Number {number}?"} for number in range(5)]
    answer = client.responses.create(**ASKED, input=asked)
    found: list[Any] = list(client.responses.input_items.list(answer.id, limit=2, order="asc"))
    assert [item.content[0].text for item in found] == [item["content"] for item in asked]
    assert len({item.id for item in found}) == 5


def test_a_deleted_response_is_gone_with_what_goes_on_from_it(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASKED, input="One?")
    second = client.responses.create(**ASKED, input="Two?", previous_response_id=first.id)
    assert client.responses.delete(first.id) is None
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    assert client.responses.retrieve(second.id).id == second.id
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASKED, input="Three?", previous_response_id=second.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_another_account_s_responses_are_unknown(house: Any, client: openai.OpenAI) -> None:
    mine = client.responses.create(**ASKED, input="One?")
    other = house.client(house.key("storing"))
    for call in (other.responses.retrieve, other.responses.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(mine.id)
        assert caught.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError):
        other.responses.create(**ASKED, input="Two?", previous_response_id=mine.id)
    assert client.responses.retrieve(mine.id).id == mine.id


def test_another_key_of_the_account_finds_them(house: Any, client: openai.OpenAI) -> None:
    mine = client.responses.create(**ASKED, input="One?")
    keys = house.command("keys", "list")["rows"]
    (account,) = {key["account"] for key in keys if key["key_id"] == house.keys[client.api_key]}
    made = house.command("keys", "create", "--account", account, "--tier", "open", "--name", "second")
    assert house.client(made["secret"]).responses.retrieve(mine.id).output_text == mine.output_text


def test_what_is_stored_survives_a_restart(house: Any, client: openai.OpenAI) -> None:
    mine = client.responses.create(**ASKED, input="One?")
    key = client.api_key
    house.proxy.stop()
    house.start_proxy()
    again = house.client(key)
    assert again.responses.retrieve(mine.id).to_dict() == mine.to_dict()
    assert again.responses.create(**ASKED, input="Two?", previous_response_id=mine.id).status in {
        "completed",
        "incomplete",
    }


def test_a_tier_that_keeps_nothing_stores_nothing(house: Any) -> None:
    client = house.client(house.key("open"))
    answer = client.responses.create(**ASKED, input="One?")
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
