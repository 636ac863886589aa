"""Anthropic's Messages API with the real model, through the whole house: the same answers as a chat has."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

MODEL = "smollm2-135m-instruct"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM = "You answer in one sentence."
GREEDY: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "temperature": 0}
HEADERS = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    house = build_house(
        {"open": {}, "two": {"requests_per_minute": 2}, "few": {"monthly_tokens": 100}}, sidecars("int8")
    )
    house.start_proxy()
    return house


@pytest.fixture(scope="module")
def key(house: Any) -> str:
    return str(house.key("open"))


def ask(house: Any, key: str, body: dict[str, Any], path: str = "/v1/messages") -> Any:
    url = f"http://127.0.0.1:{house.port}{path}"
    return httpx2.post(url, json=body, headers={**HEADERS, "x-api-key": key}, timeout=60)


def events(answer: Any) -> list[dict[str, Any]]:
    """The documents of a stream, each under the event that its type is."""
    found = []
    for frame in answer.text.removesuffix("\n\n").split("\n\n"):
        if frame.startswith(":"):
            continue
        name, _, document = frame.partition("\ndata: ")
        found.append(json.loads(document))
        assert name == f"event: {found[-1]['type']}"
    return found


def prompt_tokens(usage: dict[str, int]) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"system": SYSTEM},
        {"system": [{"type": "text", "text": SYSTEM}], "max_tokens": 3},
        {"messages": [*QUESTION, {"role": "assistant", "content": "The cap"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Grüße, 你好 🙂"}]}]},
    ],
)
def test_a_message_is_the_chat_that_it_means(house: Any, key: str, given: dict[str, Any]) -> None:
    body = {**GREEDY, **given}
    messages, continued = body["messages"], body["messages"][-1]["role"] == "assistant"
    system = [{"role": "system", "content": SYSTEM}] if "system" in given else []
    chat: Any = house.client(key).chat.completions.create(
        model=MODEL,
        messages=system + messages,
        max_tokens=body["max_tokens"],
        temperature=0,
        extra_body={"continue_final_message": continued},
    )
    whole = ask(house, key, body).json()
    (block,) = whole["content"]
    assert block == {"type": "text", "text": chat.choices[0].message.content}
    assert whole["stop_reason"] == {"stop": "end_turn", "length": "max_tokens"}[chat.choices[0].finish_reason]
    assert (prompt_tokens(whole["usage"]), whole["usage"]["output_tokens"]) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    start, begin, *deltas, end, delta, stop = events(ask(house, key, {**body, "stream": True}))
    assert [event["type"] for event in (start, begin, end, delta, stop)] == [
        *("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")
    ]
    assert "".join(event["delta"]["text"] for event in deltas) == block["text"]
    assert (delta["delta"]["stop_reason"], delta["usage"]["output_tokens"]) == (
        whole["stop_reason"],
        whole["usage"]["output_tokens"],
    )
    assert prompt_tokens(start["message"]["usage"]) == prompt_tokens(delta["usage"]) == chat.usage.prompt_tokens
    asked = {name: value for name, value in body.items() if name in {"model", "messages", "system"}}
    counted = ask(house, key, asked, "/v1/messages/count_tokens")
    assert counted.json() == {"input_tokens": chat.usage.prompt_tokens}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_told(house: Any, key: str, stream: bool) -> None:
    text = ask(house, key, GREEDY).json()["content"][0]["text"]
    word = text.split()[2]
    answer = ask(house, key, {**GREEDY, "stop_sequences": ["\x00", word], "stream": stream})
    told = events(answer)[-2]["delta"] if stream else answer.json()
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", word)
    if not stream:
        assert told["content"][0]["text"] == text[: text.index(word)]


def test_what_is_answered_is_charged_and_what_is_refused_is_not(house: Any, key: str) -> None:
    before = set(house.ledger())
    used = ask(house, key, GREEDY).json()["usage"]
    refusals = [
        (key, {**GREEDY, "tools": [{"type": "web_search_20250305", "name": "f"}]}, 400, "invalid_request_error"),
        (key, {**GREEDY, "temperature": 1.5}, 400, "invalid_request_error"),
        (key, {**GREEDY, "max_tokens": 100_000}, 400, "invalid_request_error"),
        (key, {**GREEDY, "model": "nobody"}, 404, "not_found_error"),
        ("sk-wrong", GREEDY, 401, "authentication_error"),
        (house.key("few"), {**GREEDY, "max_tokens": 100}, 429, "rate_limit_error"),
    ]
    for whose, body, status, kind in refusals:
        for stream in (False, True):
            answer = ask(house, whose, {**body, "stream": stream})
            document = answer.json()
            assert (answer.status_code, document["type"], document["error"]["type"]) == (status, "error", kind)
            assert document["request_id"] == answer.headers["request-id"]
    rows = [row for name, row in house.ledger().items() if name not in before]
    (row,) = [row for row in rows if row["state"] == "settled"]
    assert {other["prompt_tokens"] + other["completion_tokens"] for other in rows if other is not row} <= {0}
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == (
        "/v1/messages",
        prompt_tokens(used),
        used["output_tokens"],
    )


def test_a_count_takes_a_request_of_the_minute_and_is_in_no_ledger(house: Any) -> None:
    limited = house.key("two")
    body = {"model": MODEL, "messages": QUESTION}
    answers = [ask(house, limited, body, "/v1/messages/count_tokens").status_code for _ in range(3)]
    assert answers == [200, 200, 429]
    # A key's id is the part of it that may be told.
    assert [row for row in house.ledger().values() if row["key_id"] in limited] == []
