"""What leaves: heads and chunks."""

import pytest
from aiohttp.http_writer import HttpVersion, HttpVersion10, HttpVersion11

from proxy.reply import LAST_CHUNK, chunk, head


def lines(
    status: int = 200,
    headers: dict[str, str] | None = None,
    *,
    version: HttpVersion = HttpVersion11,
    length: int | None = 2,
    keep_alive: bool = True,
) -> list[str]:
    """A head's lines, but for the date."""
    made = head(status, headers or {}, version=version, length=length, keep_alive=keep_alive).decode()
    assert made.endswith("\r\n\r\n")
    found = made.removesuffix("\r\n\r\n").split("\r\n")
    assert len([line for line in found if line.startswith("Date: ")]) == 1
    return [line for line in found if not line.startswith("Date: ")]


def test_a_whole_answer_says_how_long_it_is_and_keeps_the_order_of_its_headers() -> None:
    assert lines(headers={"x-b": "1", "x-a": "2"}) == ["HTTP/1.1 200 OK", "x-b: 1", "x-a: 2", "Content-Length: 2"]


def test_an_answer_without_a_body_may_say_that_it_has_none() -> None:
    assert lines(404, length=0) == ["HTTP/1.1 404 Not Found", "Content-Length: 0"]


def test_an_answer_that_can_have_no_body_says_no_length() -> None:
    assert lines(204, length=0) == ["HTTP/1.1 204 No Content"]


def test_a_stream_is_in_chunks() -> None:
    assert lines(length=None) == ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"]
    assert chunk(b"x" * 17) + LAST_CHUNK == b"11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"


def test_the_last_answer_of_a_connection_says_so() -> None:
    assert lines(keep_alive=False)[-1] == "Connection: close"


def test_http_1_0_knows_no_chunks_and_is_told_when_the_connection_goes_on() -> None:
    assert lines(version=HttpVersion10, length=None, keep_alive=False)[1:] == ["Connection: close"]
    assert lines(version=HttpVersion10)[-1] == "Connection: keep-alive"


@pytest.mark.parametrize("value", ["a\r\nx-b: 1", "a\nb", "a\x00b", "a\x7f"])
def test_w1_a_header_cannot_begin_another(value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        lines(headers={"x-a": value})
