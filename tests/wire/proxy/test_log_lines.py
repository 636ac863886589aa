"""Whatever a client sends, a request is one line of the log, and that line is one JSON object in ASCII."""

import json

import pytest

from tests.wire.proxy.house import House, chat, request

NASTY = [
    '","level":"error","event":"forged","x":"',
    "a\\u000a{}",
    "\\x1b[2J\\x1b[31m",
    "%0d%0a{}",
    "{" * 300,
    "a" * 512,
]


def checked(house: House) -> list[dict[str, object]]:
    """The lines of requests, after a look at every line."""
    text = house.log.getvalue()
    assert text.isascii()
    assert all(character == "\n" or character >= " " for character in text)
    for line in text.splitlines():
        fields = json.loads(line)
        assert all(len(value) <= 256 for value in fields.values() if isinstance(value, str))
        assert fields["event"] != "forged"
    return house.lines("request")


@pytest.mark.parametrize("words", NASTY)
async def test_a5_a_client_s_words_stay_within_their_field(house: House, words: str) -> None:
    key = await house.key()
    headers = {
        "x-client-request-id": words,
        "user-agent": words,
        "x-forwarded-for": words.replace("\n", ""),
        "traceparent": words,
        "tracestate": words,
    }
    body = chat(stream=False, model=words, user=words, metadata={"a": words})
    for sent in (
        request(key, body, headers=headers),
        request(words, body, headers=headers),
        request(key, method="GET", path="/v1/models/" + words.replace(" ", ""), headers=headers),
    ):
        wire = await house.connect()
        await wire.send(sent)
        assert (await wire.answer()).status < 500
    lines = checked(house)
    assert len(lines) == 3
    assert {line["client_request_id"] for line in lines} == {words[:256]}


@pytest.mark.parametrize(
    "data", [b"\r\n\r\n\x00\n{}\r\n\r\n", b'GET /\n{"event":"forged"}\r\n\r\n', b"\xff\xfe\r\n\r\n"]
)
async def test_a5_bytes_that_are_no_request_are_one_line_too(house: House, data: bytes) -> None:
    wire = await house.connect()
    await wire.send(data)
    assert (await wire.answer()).status == 400
    assert len(checked(house)) == 1


async def test_a5_a_name_with_controls_in_it_is_escaped(house: House) -> None:
    key = await house.key()
    answer = await (await house.ask(key, chat(model="a\nb\u2028c\x1b[31m\ud83d\ude00", stream=False))).answer()
    assert answer.status == 404
    assert len(checked(house)) == 1
