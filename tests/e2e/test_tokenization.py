"""Tokens of texts and chats and back, with the real model's tokenizer, through the proxy."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
TEXTS = [
    "",
    " ",
    "Hello, world",
    "  two\n\n\tlines ",
    "Grüße aus Köln — 你好 🙂👩‍👩‍👧",
    "\x00\x7f\ufeff\u2028",
    "<|im_end|> 12345 é e\u0301",
]


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    house = build_house(
        {"open": {}, "two": {"requests_per_minute": 2}, "other": {"models": ["org/other"]}}, sidecars("int8")
    )
    house.start_proxy()
    return house


@pytest.fixture(scope="module")
def key(house: Any) -> str:
    return str(house.key("open"))


def ask(house: Any, key: str, path: str, **body: Any) -> Any:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"http://127.0.0.1:{house.port}{path}", json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_whole(house: Any, key: str, text: str) -> None:
    told = ask(house, key, "/tokenize", model=MODEL, prompt=text, add_special_tokens=False, return_token_strs=True)
    found = told.json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert ask(house, key, "/detokenize", model=MODEL, tokens=found["tokens"]).json() == {"prompt": text}


def test_a_chat_has_as_many_tokens_as_it_is_charged_for(house: Any, key: str) -> None:
    told = ask(house, key, "/tokenize", messages=QUESTION).json()
    client = house.client(key)
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert answer.usage.prompt_tokens == told["count"]
    entry: Any = client.models.retrieve(MODEL)
    assert told["max_model_len"] == entry.max_model_len
    rendered = ask(house, key, "/detokenize", tokens=told["tokens"]).json()["prompt"]
    assert rendered.endswith("<|im_start|>assistant\n")
    # The same tokens as the text of a completion.
    assert ask(house, key, "/tokenize", prompt=rendered).json()["tokens"] == told["tokens"]
    bare = ask(house, key, "/tokenize", messages=QUESTION, add_generation_prompt=False).json()["tokens"]
    assert rendered == ask(house, key, "/detokenize", tokens=bare).json()["prompt"] + "<|im_start|>assistant\n"


def test_a_last_message_can_be_left_open(house: Any, key: str) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "It is"}]
    told = ask(house, key, "/tokenize", messages=messages, continue_final_message=True).json()
    text = ask(house, key, "/detokenize", tokens=told["tokens"]).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\nIt is")


def test_a_token_out_of_the_vocabulary_is_refused(house: Any, key: str) -> None:
    answer = ask(house, key, "/detokenize", tokens=[1, 49152])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens")
    assert "49152" in answer.json()["error"]["message"]
    assert ask(house, key, "/detokenize", tokens=[49151]).status_code == 200


def test_it_counts_for_the_minute_but_is_charged_to_nobody(house: Any) -> None:
    before = house.ledger()
    limited, stranger = house.key("two"), house.key("other")
    statuses = [ask(house, limited, "/tokenize", prompt="Hi").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert ask(house, stranger, "/tokenize", model=MODEL, prompt="Hi").status_code == 404
    assert ask(house, "sk-wrong", "/tokenize", model=MODEL, prompt="Hi").status_code == 401
    assert house.ledger() == before
