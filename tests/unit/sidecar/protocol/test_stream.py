"""The bytes of a stream and of a whole answer, in OpenAI's shape and order."""

import json
from typing import Any

import pytest

from sidecar.protocol.answer import ChatShape, Head, Shape, TextShape
from sidecar.protocol.choices import Choices
from sidecar.protocol.stream import Stream, StreamOptions, whole
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.frames import Delta, Finish

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
    return Choices(2, lambda: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset()), (), ())


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


def test_line_feeds_in_the_text_do_not_break_a_frame() -> None:
    choices = two_choices()
    stream = Stream(TextShape(HEAD), choices, 5, PLAIN)
    frame = stream.feed(choices.take(Delta("req_1", 0, [10, 10, 0x2028], 3)))
    assert frame.count(b"\n") == 2
    assert documents([frame.decode().strip()])[0]["choices"][0]["text"] == "\n\n\u2028"
