"""The bytes of a stream and of a whole answer, in OpenAI's shape and order."""

import json
from typing import Any

import pytest

from sidecar.protocol.answer import ChatShape, Head, TextShape
from sidecar.protocol.choices import Choices, Telling
from sidecar.protocol.stream import Shape, Stream, StreamOptions, whole
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.frames import Delta, Finish, Logprobs

HEAD = Head("req_1", 1700000000, "m", "fp_1", echo_service_tier=False)
PLAIN = StreamOptions(comment=False, include_usage=False, continuous_usage=False)
EVERY = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m"}
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def two_choices() -> Choices:
    return Choices(2, lambda _: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset()), (), ())


def told(shape: Shape, options: StreamOptions) -> list[str]:
    """The frames of a stream of two choices, "h" and "yo", the second of which begins first."""
    choices = two_choices()
    stream = Stream(shape, choices, 5, options)
    sent = stream.feed(choices.take(Delta("req_1", 1, [ord("y")], 1)))
    sent += stream.feed(choices.take(Delta("req_1", 0, [ord("h")], 1, Finish.LENGTH)))
    sent += stream.feed(choices.take(Delta("req_1", 1, [ord("o")], 2, Finish.STOP)))
    sent += stream.end()
    assert sent.endswith(b"\n\n")
    return sent.decode().removesuffix("\n\n").split("\n\n")


def documents(frames: list[str]) -> list[dict[str, Any]]:
    return [json.loads(frame.removeprefix("data: ")) for frame in frames if frame.startswith("data: {")]


def test_a_chat_opens_in_order_then_tells_then_finishes_in_order() -> None:
    frames = told(ChatShape(HEAD), PLAIN)
    assert frames[-1] == "data: [DONE]"
    chunks = documents(frames)
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": None}, **open_end()}],
        [{"index": 1, "delta": {"role": "assistant", "content": "", "refusal": None}, **open_end()}],
        [{"index": 1, "delta": {"content": "y"}, **open_end()}],
        [{"index": 0, "delta": {"content": "h"}, **open_end()}],
        [{"index": 1, "delta": {"content": "o"}, **open_end()}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
        [{"index": 1, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
    ]
    for chunk in chunks:
        assert {key: chunk[key] for key in EVERY} == EVERY
        assert chunk["system_fingerprint"] == "fp_1"
        assert "usage" not in chunk
        assert "service_tier" not in chunk


def open_end() -> dict[str, None]:
    return {"logprobs": None, "finish_reason": None}


def test_usage_is_null_on_every_event_but_the_last() -> None:
    chunks = documents(told(ChatShape(HEAD), StreamOptions(False, include_usage=True, continuous_usage=False)))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)


def test_continuous_usage_counts_up() -> None:
    chunks = documents(told(ChatShape(HEAD), StreamOptions(False, include_usage=True, continuous_usage=True)))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("shape", [ChatShape(HEAD), TextShape(HEAD)])
def test_the_proxy_s_comment_stands_between_the_text_and_the_finish(shape: Shape) -> None:
    frames = told(shape, StreamOptions(comment=True, include_usage=False, continuous_usage=False))
    (at,) = [at for at, frame in enumerate(frames) if frame.startswith(": ")]
    assert json.loads(frames[at].removeprefix(": tollhouse-usage ")) == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "cached_tokens": 0,
        "finish_reason": "length",
        "reasoning_tokens": 0,
    }
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in documents(frames[:at]))
    assert [chunk["choices"][0]["finish_reason"] for chunk in documents(frames[at:])] == ["length", "stop"]


def test_a_completion_s_events_have_text_and_no_opening() -> None:
    chunks = documents(told(TextShape(HEAD), PLAIN))
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {("cmpl-1", "text_completion")}
    assert [(chunk["choices"][0]["index"], chunk["choices"][0]["text"]) for chunk in chunks] == [
        *[(1, "y"), (0, "h"), (1, "o")],
        *[(0, ""), (1, "")],
    ]
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


def test_no_event_is_sent_for_tokens_without_text() -> None:
    choices = two_choices()
    stream = Stream(TextShape(HEAD), choices, 5, PLAIN)
    assert stream.feed(choices.take(Delta("req_1", 0, [], 0))) == b""


def ended() -> Choices:
    choices = two_choices()
    choices.take(Delta("req_1", 0, [ord("h")], 1, Finish.LENGTH))
    choices.take(Delta("req_1", 1, [ord("y"), ord("o")], 2, Finish.STOP))
    return choices


def test_a_whole_chat_has_every_key_of_openai_s() -> None:
    head = Head("req_1", 1700000000, "m", "fp_1", echo_service_tier=True)
    document = json.loads(whole(ChatShape(head), ended(), 5))
    assert document == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
                "finish_reason": reason,
                "logprobs": None,
            }
            for index, text, reason in [(0, "h", "length"), (1, "yo", "stop")]
        ],
        "usage": USAGE,
    }


def test_a_whole_completion_has_every_key_of_openai_s() -> None:
    document = json.loads(whole(TextShape(HEAD), ended(), 5))
    assert (document["object"], document["usage"]) == ("text_completion", USAGE)
    assert document["choices"] == [
        {"index": 0, "text": "h", "logprobs": None, "finish_reason": "length"},
        {"index": 1, "text": "yo", "logprobs": None, "finish_reason": "stop"},
    ]


def spell(token: int, *, begins: bool = False) -> bytes:
    return chr(token).encode()


def scored() -> tuple[Choices, list[Delta]]:
    """A choice that tells log-probabilities, and its deltas: "a", then "b" and the end."""
    how = Telling(logprobs=True, end_token=True, offset=4)
    choices = Choices(1, lambda _: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset()), (), (0,), (how,))
    first = Delta("req_1", 0, [97], 1, logprobs=[Logprobs(-0.5, [98], [-0.25])], cached_tokens=3)
    last = Delta("req_1", 0, [98, 0], 3, Finish.STOP, logprobs=[Logprobs(-1.0, [99], [-0.125]), Logprobs(-2.0)])
    return choices, [first, last]


def test_a_chunk_tells_of_the_tokens_whose_text_it_has() -> None:
    choices, deltas = scored()
    stream = Stream(TextShape(HEAD, spell), choices, 5, PLAIN)
    chunks = documents(
        b"".join([*(stream.feed(choices.take(one)) for one in deltas), stream.end()]).decode().split("\n\n")
    )
    assert [(chunk["choices"][0]["text"], chunk["choices"][0]["logprobs"]) for chunk in chunks] == [
        ("a", logprobs(["a"], [-0.5], [{"b": -0.25, "a": -0.5}], [4])),
        ("b", logprobs(["b", "\x00"], [-1.0, -2.0], [{"c": -0.125, "b": -1.0}, {"\x00": -2.0}], [5, 6])),
        ("", None),
    ]


def logprobs(tokens: list[str], own: list[float], top: list[dict[str, float]], offsets: list[int]) -> dict[str, Any]:
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}


def test_a_chat_s_chunks_tell_and_its_opening_and_closing_do_not() -> None:
    choices, deltas = scored()
    stream = Stream(ChatShape(HEAD, spell), choices, 5, PLAIN)
    chunks = documents(
        b"".join([*(stream.feed(choices.take(one)) for one in deltas), stream.end()]).decode().split("\n\n")
    )
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert (told[0], told[-1]) == (None, None)
    assert told[1]["content"][0]["bytes"] == [97]
    assert (told[1]["content"][0]["logprob"], told[1]["refusal"]) == (-0.5, None)


def test_a_whole_answer_tells_all_that_its_stream_would() -> None:
    choices, deltas = scored()
    for one in deltas:
        choices.take(one)
    document = json.loads(whole(TextShape(HEAD, spell), choices, 5))
    tops = [{"b": -0.25, "a": -0.5}, {"c": -0.125, "b": -1.0}, {"\x00": -2.0}]
    assert document["choices"][0]["logprobs"] == logprobs(["a", "b", "\x00"], [-0.5, -1.0, -2.0], tops, [4, 5, 6])
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


def test_who_asked_for_log_probabilities_of_nothing_gets_an_empty_list() -> None:
    choices, _ = scored()
    choices.take(Delta("req_1", 0, [], 0, Finish.LENGTH))
    assert json.loads(whole(ChatShape(HEAD, spell), choices, 5))["choices"][0]["logprobs"] == {
        "content": [],
        "refusal": None,
    }


def test_cached_tokens_reach_the_client_and_the_proxy() -> None:
    choices, deltas = scored()
    stream = Stream(
        ChatShape(HEAD), choices, 5, StreamOptions(comment=True, include_usage=True, continuous_usage=False)
    )
    frames = b"".join([*(stream.feed(choices.take(one)) for one in deltas), stream.end()]).decode().split("\n\n")
    (comment,) = [json.loads(frame.removeprefix(": tollhouse-usage ")) for frame in frames if frame.startswith(": ")]
    assert comment["cached_tokens"] == 3
    assert documents(frames)[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


def test_of_the_best_the_likeliest_are_given_and_all_are_counted() -> None:
    three = Choices(3, lambda _: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset()), (), ())
    for index, value in enumerate([-3.0, -1.0, -2.0]):
        logprobs = [Logprobs(value)] * 2
        three.take(Delta("req_1", index, [97 + index] * 2, 2, Finish.LENGTH, logprobs=logprobs, cached_tokens=4))
    document = json.loads(whole(TextShape(HEAD), three, 5, 2, 3))
    assert [(one["index"], one["text"], one["logprobs"]) for one in document["choices"]] == [
        (0, "bb", None),
        (1, "cc", None),
    ]
    assert document["usage"]["completion_tokens"] == 6
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def with_tokens() -> tuple[Choices, list[Delta]]:
    """Two choices that tell their tokens, "ab" and "c" with its end; 1 is a token without text."""
    how = Telling(tokens=True)
    two = Choices(2, lambda _: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset({0, 1})), (), (0,), (how, how))
    return two, [
        Delta("req_1", 0, [97, 1], 2),
        Delta("req_1", 1, [99], 1),
        Delta("req_1", 1, [0], 2, Finish.STOP),
        Delta("req_1", 0, [1], 3),
        Delta("req_1", 0, [98], 4, Finish.LENGTH),
    ]


def test_a_chat_tells_its_prompt_once_and_of_each_choice_its_own_tokens() -> None:
    shape = ChatShape(HEAD, prompts=[[7, 8], [7, 8]])
    choices, deltas = with_tokens()
    stream = Stream(shape, choices, 2, StreamOptions(comment=False, include_usage=True, continuous_usage=False))
    frames = b"".join([*(stream.feed(choices.take(one)) for one in deltas), stream.end()]).decode().split("\n\n")
    chunks = documents(frames)
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[7, 8], *[None] * 9]
    told = [(one["index"], one["delta"].get("content"), one["token_ids"]) for c in chunks for one in c["choices"]]
    parts = [(0, "a", [97, 1]), (1, "c", [99]), (1, "", [0]), (0, "", [1]), (0, "b", [98])]
    assert told == [(0, "", []), (1, "", []), *parts, (0, None, []), (1, None, [])]
    document = json.loads(whole(shape, choices, 2))
    assert document["prompt_token_ids"] == [7, 8]
    assert [one["token_ids"] for one in document["choices"]] == [[97, 1, 1, 98], [99, 0]]


def test_each_choice_of_a_completion_tells_its_prompt_first() -> None:
    shape = TextShape(HEAD, prompts=[[7], [8, 9]])
    choices, deltas = with_tokens()
    stream = Stream(shape, choices, 3, PLAIN)
    frames = b"".join([*(stream.feed(choices.take(one)) for one in deltas), stream.end()]).decode().split("\n\n")
    told = [chunk["choices"][0] for chunk in documents(frames)]
    assert [(one["index"], one.get("prompt_token_ids"), one["token_ids"]) for one in told] == [
        (0, [7], []),
        (1, [8, 9], []),
        *[(0, None, [97, 1]), (1, None, [99]), (1, None, [0]), (0, None, [1]), (0, None, [98])],
        *[(0, None, []), (1, None, [])],
    ]
    document = json.loads(whole(shape, choices, 3))
    assert "prompt_token_ids" not in document
    assert [(one["prompt_token_ids"], one["token_ids"]) for one in document["choices"]] == [
        ([7], [97, 1, 1, 98]),
        ([8, 9], [99, 0]),
    ]


def test_line_feeds_in_the_text_do_not_break_a_frame() -> None:
    choices = two_choices()
    stream = Stream(TextShape(HEAD), choices, 5, PLAIN)
    frame = stream.feed(choices.take(Delta("req_1", 0, [10, 10, 0x2028], 3)))
    assert frame.count(b"\n") == 2
    assert documents([frame.decode().strip()])[0]["choices"][0]["text"] == "\n\n\u2028"
