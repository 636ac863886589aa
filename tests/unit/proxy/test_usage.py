"""The stream's usage comment is found and taken out, however the bytes are cut."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import usage
from proxy.usage import DONE, AnswerError, Sifter
from sidecar.wire.anthropic import MESSAGE_STOP
from sidecar.wire.internal import USAGE_COMMENT, Endpoint, Usage

USED = Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=1, finish_reason="stop")
COMMENT = USAGE_COMMENT + msgspec.json.encode(USED) + b"\n\n"
TEXT = b'data: {"x":": tollhouse-usage {}"}\n\ndata: {"x":"\\n\\n: tollhouse-usage "}\n\n: keep-alive\n\n'
FINISH = b'data: {"choices":[],"usage":null}\n\n' + DONE


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_any_cut_gives_the_same_text_the_usage_and_the_held_rest(places: list[int]) -> None:
    sifter, out = Sifter(), b""
    for piece in cut(TEXT + COMMENT + FINISH, places):
        given_now = sifter.feed(piece)
        assert not given_now or given_now.endswith(b"\n\n")
        out += given_now
    assert out == TEXT
    assert sifter.usage == USED
    assert sifter.held == FINISH
    assert sifter.complete
    assert not sifter.failed


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_without_a_comment_every_whole_event_passes_untouched(pieces: list[bytes]) -> None:
    sifter = Sifter()
    sent = b"".join(pieces)
    out = b"".join(sifter.feed(piece) for piece in pieces)
    if USAGE_COMMENT not in sent:
        assert sent.startswith(out)
        assert not out or out.endswith(b"\n\n")
        # What is kept back is no whole event.
        assert b"\n\n" not in sent[len(out) :]
        assert sifter.usage is None


def test_a_comment_at_the_very_start_is_found() -> None:
    sifter = Sifter()
    assert sifter.feed(COMMENT + FINISH) == b""
    assert sifter.complete


def test_the_end_is_not_complete_before_the_closing_event() -> None:
    sifter = Sifter()
    assert sifter.feed(COMMENT + FINISH[:-1]) == b""
    assert not sifter.complete
    assert sifter.feed(b"\n") == b""
    assert sifter.complete


def test_an_error_event_goes_through_and_is_noted() -> None:
    sifter = Sifter()
    event = b'data: {"error":{"message":"m"}}\n\n'
    assert sifter.feed(b"data: {}\n\n" + event) == b"data: {}\n\n" + event
    assert sifter.failed


def test_a_comment_that_is_no_usage_is_refused() -> None:
    with pytest.raises(AnswerError):
        Sifter().feed(USAGE_COMMENT + b'{"prompt_tokens":true}\n\n')


@pytest.mark.parametrize("name", [b"completed", b"incomplete"])
def test_a_response_ends_with_an_event_of_its_own(name: bytes) -> None:
    sifter = Sifter()
    done = b'event: response.output_text.done\ndata: {"text":"event: response.completed"}\n\n'
    last = b"event: response." + name + b'\ndata: {"response":{}}\n\n'
    assert sifter.feed(COMMENT + done) == b""
    assert not sifter.complete
    for at in range(len(last)):
        assert not sifter.complete
        sifter.feed(last[at : at + 1])
    assert sifter.complete
    assert sifter.held == done + last


def test_a_failed_response_goes_through_and_is_noted() -> None:
    sifter = Sifter()
    event = b'event: response.failed\ndata: {"response":{}}\n\n'
    assert sifter.feed(event) == event
    assert (sifter.failed, sifter.complete) == (True, False)


@pytest.mark.parametrize("before", [b"", COMMENT])
def test_an_endless_event_is_refused(before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_EVENT_BYTES", 100)
    sifter = Sifter()
    sifter.feed(before)
    with pytest.raises(AnswerError):
        sifter.feed(b"x" * 101)


def test_the_usage_of_a_json_answer() -> None:
    body = msgspec.json.encode(
        {
            "choices": [{"finish_reason": "length", "message": {}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}},
        }
    )
    assert usage.read_body(body, Endpoint.CHAT) == Usage(5, 7, 2, "length")


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        ("completed", "message", "stop"),
        ("completed", "function_call", "tool_calls"),
        ("incomplete", "function_call", "length"),
        ("failed", "message", ""),
        (None, "message", ""),
    ],
)
def test_the_usage_of_a_response(status: str | None, kind: str, reason: str) -> None:
    told = {"input_tokens": 5, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 2}}
    body = msgspec.json.encode(
        {"usage": told, "output": [{"type": kind}]} | ({} if status is None else {"status": status})
    )
    assert usage.read_body(body, Endpoint.RESPONSES) == Usage(5, 7, 2, reason)


def test_an_answer_without_details_or_choices_still_has_usage() -> None:
    assert usage.read_body(b'{"usage":{"prompt_tokens":5,"completion_tokens":7}}', Endpoint.CHAT) == Usage(5, 7, 0, "")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"usage":null}', b'{"usage":{"prompt_tokens":"5"}}', b"\xff"])
@pytest.mark.parametrize("endpoint", Endpoint)
def test_an_answer_without_usage_is_refused(body: bytes, endpoint: Endpoint) -> None:
    with pytest.raises(AnswerError):
        usage.read_body(body, endpoint)


def test_a_message_of_anthropic_s_is_complete_with_its_stop() -> None:
    sifter = Sifter()
    text = b'event: content_block_delta\ndata: {"delta":{"text":"event: error"}}\n\n'
    end = b"event: message_delta\ndata: {}\n\n"
    assert sifter.feed(text + COMMENT + end) == text
    assert not sifter.complete
    assert sifter.feed(MESSAGE_STOP) == b""
    assert (sifter.complete, sifter.held, sifter.failed) == (True, end + MESSAGE_STOP, False)


def test_an_error_of_anthropic_s_is_noted() -> None:
    sifter = Sifter()
    event = b'event: error\ndata: {"type":"error"}\n\n'
    assert sifter.feed(event) == event
    assert sifter.failed


@pytest.mark.parametrize(
    ("reason", "told"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls")],
)
def test_the_usage_of_a_message_counts_the_whole_prompt(reason: str, told: str) -> None:
    used = {"input_tokens": 3, "output_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 0}
    body = msgspec.json.encode({"type": "message", "usage": used, "stop_reason": reason})
    assert usage.read_body(body, Endpoint.MESSAGES) == Usage(5, 7, 2, told)


@pytest.mark.parametrize("name", ["completed", "incomplete"])
def test_a_response_is_read_from_its_answer_and_from_the_end_of_its_stream(name: str) -> None:
    response = b'{"id":"resp_1","text":"\\n\\ndata: "}'
    assert usage.told_response(response, stream=False) == response
    last = f'event: response.{name}\ndata: {{"sequence_number":9,"response":'.encode() + response + b"}\n\n"
    for before in (b"", b'event: response.output_text.done\ndata: {"response":1}\n\n'):
        assert usage.told_response(before + last, stream=True) == response


@pytest.mark.parametrize("held", [b"", DONE, b"event: response.completed\ndata: {}\n\n", b"data: {\n\n", b"data: {}"])
def test_an_end_without_a_response_tells_none(held: bytes) -> None:
    with pytest.raises(AnswerError):
        usage.told_response(held, stream=True)


def test_embeddings_use_their_prompt_alone() -> None:
    body = b'{"object":"list","data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}'
    assert usage.read_body(body, Endpoint.EMBEDDINGS) == Usage(5, 0)
    with pytest.raises(usage.AnswerError):
        usage.read_body(b'{"data":[]}', Endpoint.EMBEDDINGS)


@pytest.mark.parametrize(
    ("endpoint", "usage_told"),
    [
        (Endpoint.CHAT, b'{"prompt_tokens":5,"completion_tokens":7,"completion_tokens_details":%s}'),
        (Endpoint.RESPONSES, b'{"input_tokens":5,"output_tokens":7,"output_tokens_details":%s}'),
    ],
)
@pytest.mark.parametrize(("details", "wanted"), [(b'{"reasoning_tokens":4}', 4), (b"{}", 0), (b"null", 0)])
def test_thoughts_of_a_whole_answer_are_told(
    endpoint: Endpoint, usage_told: bytes, details: bytes, wanted: int
) -> None:
    body = b'{"usage":%s,"choices":[],"status":"completed"}' % (usage_told % details)
    assert usage.read_body(body, endpoint).reasoning_tokens == wanted
