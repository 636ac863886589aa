"""Log-probabilities in OpenAI's two shapes."""

import math

import msgspec

from sidecar.protocol.logprobs import Entry, chat_logprobs, text_logprobs
from sidecar.wire.frames import Logprobs

WORDS = {1: b"a", 2: b" b", 3: "é".encode()[:1], 4: "é".encode()[1:], 5: b"a"}


def spell(token: int, *, begins: bool = False) -> bytes:
    return WORDS[token].removeprefix(b" ") if begins else WORDS[token]


def test_a_chat_tells_token_bytes_and_the_likeliest() -> None:
    entries = (Entry(1, Logprobs(-0.5, [2, 1], [-0.25, -0.5]), 0), Entry(3, Logprobs(-math.inf), 1))
    assert msgspec.to_builtins(chat_logprobs(entries, spell)) == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [
                    {"token": " b", "logprob": -0.25, "bytes": [32, 98]},
                    {"token": "a", "logprob": -0.5, "bytes": [97]},
                ],
            },
            {"token": "\\xc3", "logprob": -9999.0, "bytes": [0xC3], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_where_a_text_begins_the_space_that_is_not_shown_is_not_told() -> None:
    entries = (Entry(2, Logprobs(-0.5, [2], [-0.5]), 0, begins=True), Entry(2, Logprobs(-0.5), 1))
    told = chat_logprobs(entries, spell).content
    assert [(one.token, bytes(one.bytes)) for one in told] == [("b", b"b"), (" b", b" b")]
    assert told[0].top_logprobs[0].token == "b"


def test_parts_of_characters_have_keys_of_their_own() -> None:
    entry = Entry(3, Logprobs(-2.0, [4, 3], [-0.5, -2.0]), 0)
    told = text_logprobs((entry,), spell)
    assert told.tokens == ["bytes:\\xc3"]
    assert told.top_logprobs == [{"bytes:\\xa9": -0.5, "bytes:\\xc3": -2.0}]


def test_a_completion_tells_parallel_arrays_and_nothing_of_the_first_token() -> None:
    entries = (Entry(1, None, 0), Entry(2, Logprobs(-1.0, [1], [-0.1]), 1), Entry(5, Logprobs(-2.0, [1], [-3.0]), 3))
    assert msgspec.to_builtins(text_logprobs(entries, spell)) == {
        "tokens": ["a", " b", "a"],
        "token_logprobs": [None, -1.0, -2.0],
        # The chosen one is always among them; of two tokens with one text the likelier stands.
        "top_logprobs": [None, {"a": -0.1, " b": -1.0}, {"a": -2.0}],
        "text_offset": [0, 1, 3],
    }


def test_tokens_may_be_called_by_their_ids() -> None:
    entries = (Entry(1, None, 0), Entry(5, Logprobs(-2.0, [1], [-3.0]), 1))
    told = chat_logprobs(entries[1:], spell, by_id=True).content[0]
    assert (told.token, told.bytes) == ("token_id:5", [97])
    assert [(one.token, one.bytes) for one in told.top_logprobs] == [("token_id:1", [97])]
    text = text_logprobs(entries, spell, by_id=True)
    assert text.tokens == ["token_id:1", "token_id:5"]
    # Two tokens with one text are two here.
    assert text.top_logprobs == [None, {"token_id:1": -3.0, "token_id:5": -2.0}]
    assert text.text_offset == [0, 1]
