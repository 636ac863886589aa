"""One reader's request must not be another's two: what a proxy before us could read differently is refused.

Each case is a request whose end is ambiguous, with a whole request of its own hidden in what may be its body.
"""

import asyncio
import json

import pytest

from tests.fakes.sidecar import DONE, FINISH, WHOLE, delta, usage_comment
from tests.wire.proxy.house import Answer, House, Wire, chat, request

PLACE = b"POST /v1/chat/completions HTTP/1.1\r\n"
AMBIGUOUS = {
    "length and chunked": b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
    "chunked and length": b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    "two lengths": b"content-length: 0\r\ncontent-length: 4\r\n",
    "two equal lengths": b"content-length: 5\r\ncontent-length: 5\r\n",
    "a list of lengths": b"content-length: 5, 5\r\n",
    "a signed length": b"content-length: +5\r\n",
    "a negative length": b"content-length: -5\r\n",
    "a hexadecimal length": b"content-length: 0x5\r\n",
    "a spaced length": b"content-length: 5 5\r\n",
    "an underscored length": b"content-length: 1_0\r\n",
    "an empty length": b"content-length: \r\n",
    "a huge length": b"content-length: 99999999999999999999999\r\n",
    "a length in other digits": b"content-length: \xd9\xa5\r\n",
    "a length after a vertical tab": b"content-length: \x0b5\r\n",
    "space before the colon": b"content-length : 5\r\n",
    "tab before the colon": b"transfer-encoding\t: chunked\r\n",
    "a folded header": b"transfer-encoding:\r\n chunked\r\n",
    "a folded length": b"content-length: 5\r\n 0\r\n",
    "chunked twice": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "chunked, identity": b"transfer-encoding: chunked, identity\r\n",
    "identity": b"transfer-encoding: identity\r\n",
    "gzip": b"transfer-encoding: gzip\r\n",
    "gzip, chunked": b"transfer-encoding: gzip, chunked\r\n",
    "xchunked": b"transfer-encoding: xchunked\r\n",
    "chunked with a parameter": b"transfer-encoding: chunked;a=b\r\n",
    "quoted": b'transfer-encoding: "chunked"\r\n',
    "chunked after a vertical tab": b"transfer-encoding: \x0bchunked\r\n",
    "chunked before a NUL": b"transfer-encoding: chunked\x00\r\n",
    "a NUL in a value": b"x-a: b\x00c\r\n",
    "a NUL in a name": b"x\x00a: b\r\n",
    "a bare LF": b"x-a: b\ncontent-length: 5\r\n",
    "a bare CR": b"x-a: b\rcontent-length: 5\r\n",
    "a CR before a name": b"\rcontent-length: 5\r\n",
    "a name of none": b": b\r\n",
    "a line without a colon": b"content-length 5\r\n",
    "an umlaut in a name": "länge: 5\r\n".encode(),
    "a comma in a name": b"content,length: 5\r\n",
    "a space before the first name": b" content-length: 5\r\n",
    "chunked in capitals beside a length": b"Transfer-Encoding: CHUNKED\r\nContent-Length: 5\r\n",
    "a length in a form of its own": b"content-length: 5e0\r\n",
}
CHUNKS = {
    "a size that is none": b"zz\r\nhello\r\n0\r\n\r\n",
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a prefixed size": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an underscored size": b"1_0\r\nhello\r\n0\r\n\r\n",
    "a spaced size": b"5 5\r\nhello\r\n0\r\n\r\n",
    "a size too large": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "an empty size": b"\r\nhello\r\n0\r\n\r\n",
    "a bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nhello\r\n0\r\n\r\n",
    "no CRLF after the data": b"5\r\nhelloXX0\r\n\r\n",
    "data longer than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;\x00\r\nhello\r\n0\r\n\r\n",
}


async def told_once(wire: Wire, code: int = 400) -> Answer:
    """One refusal and then the end: nothing else is answered on this connection."""
    answer = await wire.answer()
    assert answer.status == code, answer
    assert await wire.closed()
    return answer


@pytest.mark.parametrize("lines", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_w1_a_head_that_two_could_read_differently_is_refused(house: House, lines: bytes) -> None:
    key = await house.key()
    hidden = request(key, chat(stream=False))
    wire = await house.connect()
    head = PLACE + b"host: a\r\nauthorization: Bearer " + key.encode() + b"\r\n"
    await wire.send(head + lines + b"\r\n0\r\n\r\n" + hidden)
    answer = await told_once(wire)
    assert answer.error["type"] == "invalid_request_error"
    assert house.sidecar.received == []


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
async def test_w1_chunks_that_two_could_read_differently_are_refused(house: House, chunks: bytes) -> None:
    key = await house.key()
    wire = await house.connect()
    head = PLACE + b"host: a\r\nauthorization: Bearer " + key.encode() + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    await wire.send(head + chunks + request(key, chat(stream=False)))
    await told_once(wire)
    assert house.sidecar.received == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /v1/models\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET /v1/models HTTP/1.1 \r\nhost: a\r\n\r\n", id="a space after"),
        pytest.param(b"GET /v1/models HTTP/1.11\r\nhost: a\r\n\r\n", id="HTTP/1.11"),
        pytest.param(b"GET /v1/models HTTP/11.1\r\nhost: a\r\n\r\n", id="HTTP/11.1"),
        pytest.param(b"GET /v1/models http/1.1\r\nhost: a\r\n\r\n", id="small letters"),
        pytest.param(b"GET /v1/models\x00 HTTP/1.1\r\nhost: a\r\n\r\n", id="a NUL"),
        pytest.param(b"GET /v1/models HTTP/1.1\nhost: a\n\n", id="bare LF"),
        pytest.param(b"G\x0bET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n", id="a vertical tab"),
    ],
)
async def test_w1_a_line_that_is_none_is_refused(house: House, data: bytes) -> None:
    wire = await house.connect()
    await wire.send(data + request(await house.key(), chat(stream=False)))
    await told_once(wire)
    assert house.sidecar.received == []


async def test_w1_trailers_and_extensions_are_read_over(house: House) -> None:
    body = json.dumps(chat(stream=False)).encode()
    key = await house.key()
    head = PLACE + b"host: a\r\nauthorization: Bearer " + key.encode() + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    wire = await house.connect()
    await wire.send(head + b"%x;a=b\r\n%b\r\n0\r\nauthorization: Bearer x\r\n\r\n" % (len(body), body))
    assert (await wire.answer()).body == WHOLE


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param({"connection": "upgrade", "upgrade": "websocket"}, id="websocket"),
        pytest.param({"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAM"}, id="h2c"),
    ],
)
async def test_w1_an_upgrade_is_declined_and_its_body_is_no_request(house: House, lines: dict[str, str]) -> None:
    key = await house.key()
    hidden = request(key, method="GET", path="/v1/models")
    wire = await house.connect()
    await wire.send(request(key, hidden, headers=lines))
    answer = await wire.answer()
    # The hidden request is the body, and no JSON.
    assert (answer.status, answer.error["code"]) == (400, None)
    await wire.send(request(None, method="GET", path="/v1/models"))
    assert (await wire.answer()).status == 401


async def test_w1_nothing_of_the_client_s_head_reaches_the_sidecar(house: House) -> None:
    sent = {"x-evil": "1", "cookie": "a=b", "te": "trailers", "x-tollhouse-tenant": "other", "forwarded": "for=1.1.1.1"}
    wire = await house.connect()
    await wire.send(request(await house.key(), chat(stream=False), headers=sent))
    assert (await wire.answer()).body == WHOLE
    (received,) = house.sidecar.received
    names = {name.lower() for name in received.headers}
    assert names & {"x-evil", "cookie", "te", "authorization", "forwarded"} == set()
    assert received.headers.get("x-tollhouse-tenant") != "other"


async def test_w8_the_second_request_begins_when_the_first_is_answered(house: House) -> None:
    more = asyncio.Event()
    house.sidecar.script = [delta("a"), more, usage_comment(1), FINISH + DONE]
    house.sidecar.always_produced = 1
    key = await house.key()
    wire = await house.connect()
    await wire.send(request(key, chat()) + request(key, chat()))
    await wire.head()
    assert await wire.chunk() == delta("a")
    assert len(house.sidecar.received) == 1
    more.set()
    assert (await wire.chunk(), await wire.chunk()) == (FINISH + DONE, b"")
    second = await wire.answer()
    assert second.whole
    assert len(house.sidecar.received) == 2


async def test_w8_a_thousand_requests_at_once_are_answered_in_turn(house: House) -> None:
    wire = await house.connect()
    sending = asyncio.create_task(wire.send(request(None, method="GET", path="/v1/models") * 1000))
    ids = {(await wire.answer()).headers["x-request-id"] for _ in range(1000)}
    await sending
    assert len(ids) == 1000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/",
        "//v1/models",
        "/v1//models",
        "/v1/./models",
        "/v1/x/../models",
        "/v1%2fmodels",
        "/%761/models",
        "/V1/models",
        "/v1/models;a",
        "/v1\\models",
        "/v1/models%00",
        "/v1/models#a",
        "http://tollhouse/v1/models",
        "*",
    ],
)
async def test_w9_only_the_path_as_it_stands_is_a_path(house: House, path: str) -> None:
    wire = await house.connect()
    await wire.send(request(None, method="GET", path=path))
    # A stranger to a path that exists would be told 401.
    assert (await wire.answer()).status in {400, 404}


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"host: a\r\nhost: a\r\n", id="two"),
        pytest.param(b"host: a/b\r\n", id="a path"),
        pytest.param(b"host: a@b\r\n", id="a user"),
        pytest.param(b"host: \r\n", id="empty"),
        pytest.param(b"host: a b\r\n", id="a space"),
        pytest.param(b"host: a, b\r\n", id="a list"),
    ],
)
async def test_w9_a_host_that_is_none_is_refused(house: House, lines: bytes) -> None:
    wire = await house.connect()
    await wire.send(b"GET /v1/models HTTP/1.1\r\n" + lines + b"\r\n")
    await told_once(wire)


async def test_w9_a_host_changes_nothing(house: House) -> None:
    wire = await house.connect()
    key = await house.key()
    for host in ("evil.example", "127.0.0.1:8001", "[::1]"):
        await wire.send(request(key, method="GET", path="/v1/models", headers={"host": host}))
        answer = await wire.answer()
        assert answer.status == 200
        assert host.encode() not in answer.body
