"""The stream's usage comment is found and taken out, however the bytes are cut."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import usage
from proxy.usage import DONE, AnswerError, Sifter
from sidecar.wire.internal import USAGE_COMMENT, Usage

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
    whole = sent[: sent.rfind(b"\n\n") + 2] if b"\n\n" in sent else b""
    if USAGE_COMMENT not in sent:
        assert out == whole
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
    assert usage.read_body(body) == Usage(5, 7, 2, "length")


def test_an_answer_without_details_or_choices_still_has_usage() -> None:
    assert usage.read_body(b'{"usage":{"prompt_tokens":5,"completion_tokens":7}}') == Usage(5, 7, 0, "")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"usage":null}', b'{"usage":{"prompt_tokens":"5"}}', b"\xff"])
def test_an_answer_without_usage_is_refused(body: bytes) -> None:
    with pytest.raises(AnswerError):
        usage.read_body(body)
