"""The bytes of a stream and of a whole answer of /v1/messages that is words; others are in test_streamed_as_whole."""

import json
from typing import Any

import pytest

from sidecar.protocol.answer import Head
from sidecar.protocol.anthropic_answer import MessageShape
from sidecar.protocol.anthropic_stream import MessageStream
from sidecar.protocol.choices import Choices
from sidecar.protocol.stream import StreamOptions, whole
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import bad_request
from sidecar.wire.frames import Delta, Finish

SHAPE = MessageShape(Head("req_1", 1700000000, "m", "fp_1", echo_service_tier=False))
OPTIONS = StreamOptions(comment=False, include_usage=False, continuous_usage=False)
EMPTY = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}


def choices(*stops: str) -> Choices:
    return Choices(1, lambda _: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset()), stops, ())


def usage(output_tokens: int) -> dict[str, int]:
    """Of a prompt of five tokens, two of which the prefix cache had."""
    read = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 2}
    return {"input_tokens": 3, "output_tokens": output_tokens, **read}


def events(data: bytes) -> list[dict[str, Any]]:
    """The documents of a stream, each under the event that its type is."""
    found = []
    for frame in data.decode().removesuffix("\n\n").split("\n\n"):
        name, _, document = frame.partition("\ndata: ")
        found.append(json.loads(document))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_stream_has_anthropic_s_events_in_their_order() -> None:
    given = choices()
    stream = MessageStream(SHAPE, given, 5, OPTIONS)
    sent = stream.feed(given.take(Delta("req_1", 0, [ord("h")], 1, cached_tokens=2)))
    sent += stream.feed(given.take(Delta("req_1", 0, [ord("i")], 2)))
    sent += stream.feed(given.take(Delta("req_1", 0, [], 2, Finish.LENGTH)))
    sent += stream.end()
    assert events(sent) == [
        {
            "type": "message_start",
            "message": {**EMPTY, "stop_reason": None, "stop_sequence": None, "usage": usage(1)},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "h"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "i"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens", "stop_sequence": None}, "usage": usage(2)},
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(
    ("stops", "finish", "reason", "sequence", "text"),
    [
        ((), Finish.STOP, "end_turn", None, "abc"),
        (("x",), Finish.STOP, "end_turn", None, "abc"),
        ((), Finish.LENGTH, "max_tokens", None, "abc"),
        (("c", "b"), None, "stop_sequence", "b", "a"),
        (("bc", "b"), None, "stop_sequence", "b", "a"),
        (("abc",), None, "stop_sequence", "abc", ""),
    ],
)
def test_why_it_ends_is_told_whole_and_streamed(
    stops: tuple[str, ...], finish: Finish | None, reason: str, sequence: str | None, text: str
) -> None:
    given = choices(*stops)
    stream = MessageStream(SHAPE, given, 5, OPTIONS)
    sent = stream.feed(given.take(Delta("req_1", 0, [*map(ord, "abc")], 3, finish, cached_tokens=2))) + stream.end()
    ended = {"stop_reason": reason, "stop_sequence": sequence}
    assert events(sent)[-2]["delta"] == ended
    document = json.loads(whole(SHAPE, given, 5))
    used = usage(given.completion_tokens)
    assert document == {**EMPTY, **ended, "content": [{"type": "text", "text": text}], "usage": used}


def test_the_proxy_s_comment_stands_before_the_end() -> None:
    given = choices()
    stream = MessageStream(SHAPE, given, 5, StreamOptions(comment=True, include_usage=False, continuous_usage=False))
    stream.feed(given.take(Delta("req_1", 0, [ord("h")], 1, Finish.LENGTH)))
    comment, *rest = stream.end().split(b"\n\n")
    assert comment.startswith(b": tollhouse-usage ")
    assert rest[0].startswith(b"event: content_block_stop\n")
    assert rest[-2:] == [b'event: message_stop\ndata: {"type":"message_stop"}', b""]


def test_a_failure_is_an_error_event() -> None:
    assert events(MessageStream(SHAPE, choices(), 5, OPTIONS).fail(bad_request("no"))) == [
        {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}, "request_id": "req_1"}
    ]
