"""The most of everything that a body may hold is taken, and one more is refused with its field and a code."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.protocol.anthropic import read_message
from sidecar.protocol.chat import read_chat
from sidecar.protocol.completions import read_completion
from sidecar.protocol.embeddings import read_embedding
from sidecar.protocol.fields import Fields, decode_object
from sidecar.protocol.responses import read_response
from sidecar.settings import Api
from sidecar.wire.errors import ApiError

HELLO = {"role": "user", "content": "Hello"}
Reader = Callable[[Fields, Api], Any]
CHAT, COMPLETION, RESPONSE, MESSAGE, EMBEDDING = (
    read_chat,
    read_completion,
    read_response,
    read_message,
    read_embedding,
)
LEAST: dict[Reader, dict[str, Any]] = {
    CHAT: {"messages": [HELLO]},
    COMPLETION: {"prompt": "Once"},
    RESPONSE: {"input": "Hello"},
    MESSAGE: {"messages": [HELLO], "max_tokens": 5},
    EMBEDDING: {"input": "Hello"},
}


def read(reader: Reader, fields: dict[str, Any]) -> None:
    reader(decode_object(json.dumps({"model": "m", **LEAST[reader], **fields}).encode()), Api())


def many(thing: Any) -> Callable[[int], list[Any]]:
    return lambda count: [thing] * count


def tools(count: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f"f{number}"}} for number in range(count)]


def biases(count: int) -> dict[str, int]:
    return {str(number): 1 for number in range(count)}


def as_it_is(value: Any) -> Any:
    return value


# Where, which field, how a value is made of a number, and the greatest number that is taken.
MOST: list[tuple[Reader, str, Callable[[int], Any], int]] = [
    (CHAT, "n", as_it_is, 8),
    (CHAT, "messages", many(HELLO), 2048),
    (CHAT, "stop", many("x"), 16),
    (CHAT, "stop", lambda count: "x" * count, 256),
    (CHAT, "tools", tools, 128),
    (CHAT, "logit_bias", biases, 300),
    (CHAT, "logit_bias", lambda value: {"5": value}, 100),
    (CHAT, "stop_token_ids", many(5), 64),
    (CHAT, "allowed_token_ids", many(5), 1024),
    (CHAT, "bad_words", many("x"), 128),
    (COMPLETION, "n", as_it_is, 8),
    (COMPLETION, "best_of", as_it_is, 8),
    (COMPLETION, "prompt", many("x"), 32),
    (COMPLETION, "logprobs", as_it_is, 20),
    (COMPLETION, "stop", many("x"), 16),
    (MESSAGE, "messages", many(HELLO), 2048),
    (MESSAGE, "stop_sequences", many("x"), 64),
    (RESPONSE, "input", many(HELLO), 2048),
    (RESPONSE, "metadata", lambda count: {str(number): "x" for number in range(count)}, 16),
    (EMBEDDING, "input", many("x"), 2048),
]
# Neither of these is a whole number, whatever it is equal to. 2^64 becomes a float in many readers of JSON.
NO_INTEGERS = [True, 1.5, "1", [1], {"a": 1}, 2**64, -(2**64), 1e300]
INTEGERS = [
    (CHAT, "n"),
    (CHAT, "max_tokens"),
    (CHAT, "max_completion_tokens"),
    (CHAT, "min_tokens"),
    (CHAT, "seed"),
    (COMPLETION, "best_of"),
    (COMPLETION, "max_tokens"),
    (COMPLETION, "logprobs"),
    (RESPONSE, "max_output_tokens"),
    (MESSAGE, "max_tokens"),
    (EMBEDDING, "dimensions"),
]


def name(case: Any) -> str:
    return str(getattr(case, "__name__", case))


@pytest.mark.parametrize(("reader", "field", "make", "most"), MOST, ids=name)
def test_c1_the_most_is_taken_and_one_more_is_not(
    reader: Reader, field: str, make: Callable[[int], Any], most: int
) -> None:
    read(reader, {field: make(most)})
    with pytest.raises(ApiError) as caught:
        read(reader, {field: make(most + 1)})
    assert caught.value.status == 400
    assert caught.value.param is not None
    assert caught.value.param.startswith(field)
    assert caught.value.code is not None


def test_c1_twenty_of_the_likeliest_tokens_are_told_and_no_more() -> None:
    read(CHAT, {"logprobs": True, "top_logprobs": 20})
    with pytest.raises(ApiError) as caught:
        read(CHAT, {"logprobs": True, "top_logprobs": 21})
    assert (caught.value.param, caught.value.code) == ("top_logprobs", "integer_above_max_value")


@pytest.mark.parametrize(("reader", "field"), INTEGERS, ids=name)
def test_c1_what_is_no_whole_number_is_none(reader: Reader, field: str) -> None:
    for value in NO_INTEGERS:
        with pytest.raises(ApiError) as caught:
            read(reader, {field: value})
        assert (caught.value.status, caught.value.param) == (400, field), value


def test_c3_a_number_that_only_a_float_can_hold_is_no_integer() -> None:
    for written in ("18446744073709551616", "1e400", "NaN", "Infinity", "-Infinity", "0x10", "01"):
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":' + written.encode() + b"}"
        with pytest.raises(ApiError) as caught:
            read_chat(decode_object(body), Api())
        assert caught.value.status == 400, written


def test_c3_of_a_doubled_name_the_last_counts() -> None:
    body = b'{"model":"a","messages":[{"role":"user","content":"x"}],"model":"b"}'
    assert read_chat(decode_object(body), Api()).options.model == "b"


def test_c1_a_bomb_is_refused_by_name() -> None:
    """Bodies of a megabyte, made of the most expensive thing to look at each."""
    bombs: list[dict[str, Any]] = [
        {"logit_bias": {str(number): 1 for number in range(80_000)}},
        {"messages": [HELLO] * 25_000},
        {"stop": ["x" * 1000] * 1000},
        {"tools": tools(15_000)},
        {"metadata": {"a" * 100_000: "x" * 900_000}},
        {"n": 10**9, "top_logprobs": 10**9, "max_tokens": 10**9},
    ]
    for bomb in bombs:
        with pytest.raises(ApiError) as caught:
            read(CHAT, bomb)
        assert (caught.value.status, caught.value.param in bomb) == (400, True), caught.value
