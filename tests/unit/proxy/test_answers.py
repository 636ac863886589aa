"""What is an answer and what is none, however its bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.answers import MAX_HEAD_BYTES, MAX_LINE_BYTES, BrokenOffError, Reading

COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-One:  a b \t\r\nX-One: c\r\nX-None:\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5\r\nhello\r\n00A;name=value\r\n, you\r\n\r\n!\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
UNTIL_CLOSED = b"HTTP/1.0 200 OK\r\n\r\nhello"
BODIES = {COUNTED: b"hello", CHUNKED: b"hello, you\r\n\r\n!", UNTIL_CLOSED: b"hello"}


def read(*pieces: bytes) -> tuple[Reading, bytes]:
    reading = Reading()
    return reading, b"".join([reading.feed(piece) for piece in pieces])


@given(answer=st.sampled_from(list(BODIES)), cuts=st.sets(st.integers(1, 100)))
def test_an_answer_is_the_same_however_it_is_cut(answer: bytes, cuts: set[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(answer)), len(answer)]
    pieces = [answer[start:end] for start, end in itertools.pairwise(places)]
    reading, body = read(*pieces)
    assert body == BODIES[answer]
    assert reading.head is not None
    assert reading.head.status == 200
    assert reading.whole == (answer is not UNTIL_CLOSED)
    reading.end()
    assert reading.whole


def test_headers_are_found_by_their_lower_case_names() -> None:
    reading, _ = read(COUNTED)
    assert reading.head is not None
    assert reading.head.headers == {"content-length": "5", "x-one": "a b", "x-none": ""}


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_some_answers_have_no_body(status: bytes) -> None:
    reading, body = read(b"HTTP/1.1 " + status + b" None\r\n\r\n")
    assert (reading.whole, body) == (True, b"")


@pytest.mark.parametrize("answer", [COUNTED, CHUNKED])
def test_an_answer_that_is_cut_short_is_broken_off(answer: bytes) -> None:
    for end in range(len(answer)):
        reading, _ = read(answer[:end])
        with pytest.raises(BrokenOffError, match="early"):
            reading.end()


@pytest.mark.parametrize("answer", [COUNTED, CHUNKED])
def test_an_answer_that_goes_on_is_broken_off(answer: bytes) -> None:
    with pytest.raises(BrokenOffError, match="after"):
        read(answer + b"x")
    with pytest.raises(BrokenOffError, match="after"):
        read(answer, b"x")


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b"space : 1\r\n\r\n",
        HEAD + b"folded: 1\r\n 2\r\n\r\n",
        HEAD + b"bare: 1\n2\r\n\r\n",
        HEAD + b"bare: 1\r2\r\n\r\n",
        HEAD + b"nul: \0\r\n\r\n",
        HEAD + b": 1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +1\r\n\r\n",
        HEAD + b"Content-Length: 1_0\r\n\r\n",
        HEAD + b"Content-Length: 0x1\r\n\r\n",
        HEAD + b"Content-Length: \r\n\r\n",
        HEAD + b"Content-Length: 1, 1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: identity\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        CHUNKS + b"\r\n",
        CHUNKS + b"x\r\n",
        CHUNKS + b"-1\r\n",
        CHUNKS + b"0x1\r\n",
        CHUNKS + b" 1\r\n",
        CHUNKS + b"1\n\r\n",
        CHUNKS + b"1;\0\r\n",
        CHUNKS + b"1111111111111\r\n",
        CHUNKS + b"1\r\nab\r\n",
        HEAD + b"x" * MAX_HEAD_BYTES,
        CHUNKS + b"1" * (MAX_LINE_BYTES + 1),
        CHUNKS + b"0\r\n" + b"x: y\r\n" * MAX_HEAD_BYTES,
    ],
)
def test_what_is_not_http_is_no_answer(answer: bytes) -> None:
    with pytest.raises(BrokenOffError):
        read(answer)


def test_a_chunk_goes_on_before_it_is_whole() -> None:
    assert read(CHUNKS + b"a\r\nhel")[1] == b"hel"
