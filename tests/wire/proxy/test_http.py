"""Requests that are no requests, too large, too slow or not for us: each gets an OpenAI error and echoes nothing."""

import asyncio
import gzip
import json
import tracemalloc

import pytest

from proxy.settings import Limits
from tests.fakes.sidecar import WHOLE
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, chat, request

CANARY = "sk-th_canary"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-th_canary\r\n"


async def sent(house: House, data: bytes) -> Answer:
    wire = await house.connect()
    await wire.send(data)
    return await wire.answer()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"NONSENSE sk-th_canary\r\n\r\n",
        HEAD + b"bad header line sk-th_canary\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"transfer-encoding: gzip\r\n\r\n",
        HEAD + b"x-a: b\x00c\r\n\r\n",
    ],
)
async def test_w1_bytes_that_are_no_request_get_a_400_and_are_not_echoed(house: House, data: bytes) -> None:
    wire = await house.connect()
    await wire.send(data)
    answer = await wire.answer()
    assert (answer.status, answer.error["type"], answer.error["code"]) == (400, "invalid_request_error", None)
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-type"] == "application/json"
    assert CANARY.encode() not in answer.body
    assert await wire.closed()
    assert (await house.line())["status"] == 400
    assert CANARY not in house.log.getvalue()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v1/models?" + b"a" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (HEAD + b"x-long: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (HEAD + b"".join(b"x-%d: a\r\n" % number for number in range(120)) + b"\r\n", 431),
    ],
)
async def test_w4_a_head_that_is_too_large_is_told_which_part_is(house: House, data: bytes, status: int) -> None:
    answer = await sent(house, data)
    assert (answer.status, answer.error["code"]) == (status, "request_too_large")


async def test_w4_many_headers_are_too_large_together(house: House) -> None:
    lines = b"".join(b"x-%d: %b\r\n" % (number, b"a" * 8000) for number in range(9))
    answer = await sent(house, HEAD + lines + b"\r\n")
    assert (answer.status, answer.error["code"]) == (431, "request_too_large")


async def test_w2_a_head_that_does_not_come_to_its_end_is_a_408(build: Build) -> None:
    async with build(Limits(head_timeout_s=1.0)) as house:
        answer = await sent(house, HEAD)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        silent = await house.connect()
        # Nothing asked, nothing answered.
        assert await silent.closed()


async def test_w2_the_second_head_on_a_connection_has_its_limit_too_and_a_pause_has_not(build: Build) -> None:
    async with build(Limits(head_timeout_s=1.0)) as house:
        key = await house.key()
        wire = await house.connect()
        await wire.send(request(key, method="GET", path="/v1/models"))
        assert (await wire.answer()).status == 200
        await asyncio.sleep(1.5)
        await wire.send(request(key, method="GET", path="/v1/models"))
        assert (await wire.answer()).status == 200
        await wire.send(HEAD)
        assert (await wire.answer()).status == 408


async def test_w4_a_declared_body_that_is_too_large_is_refused_unread(build: Build) -> None:
    async with build(Limits(max_body_bytes=100)) as house:
        data = request(await house.key(), b"", headers={"content-length": "101"})
        answer = await sent(house, data)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_w4_a_chunked_body_that_grows_too_large_is_refused(build: Build) -> None:
    async with build(Limits(max_body_bytes=100)) as house:
        key = (await house.key()).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + key
        answer = await sent(
            house,
            head
            + b"\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"40\r\n"
            + b"a" * 64
            + b"\r\n"
            + b"40\r\n"
            + b"a" * 64
            + b"\r\n",
        )
        assert answer.status == 413


async def test_w2_a_body_that_does_not_come_is_a_408(build: Build) -> None:
    async with build(Limits(body_timeout_s=1.0)) as house:
        data = request(await house.key(), b"", headers={"content-length": "10"})
        answer = await sent(house, data)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_w1_a_chunked_body_that_is_broken_is_a_400(house: House) -> None:
    key = (await house.key()).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + key
    answer = await sent(house, head + b"\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n")
    assert answer.status == 400


async def test_a_chunked_body_is_read(house: House) -> None:
    key = (await house.key()).encode()
    body = json.dumps(chat(stream=False)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + key
    answer = await sent(
        house, head + b"\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )
    assert (answer.status, answer.body) == (200, WHOLE)


async def test_w4_a_body_that_is_expected_is_asked_for_once_the_key_is_known(house: House) -> None:
    key = await house.key()
    body = json.dumps(chat(stream=False)).encode()
    whole = request(key, body, headers={"expect": "100-continue"})
    wire = await house.connect()
    await wire.send(whole.removesuffix(body))
    assert await wire.head() == (100, {})
    await wire.send(body)
    assert (await wire.answer()).body == WHOLE


async def test_w4_a_body_of_nobody_is_not_asked_for(house: House) -> None:
    body = json.dumps(chat()).encode()
    answer = await sent(house, request(None, body, headers={"expect": "100-continue"}).removesuffix(body))
    assert answer.status == 401


async def test_w4_a_body_that_is_too_large_is_not_asked_for(build: Build) -> None:
    async with build(Limits(max_body_bytes=100)) as house:
        whole = request(await house.key(), b"a" * 101, headers={"expect": "100-continue"})
        answer = await sent(house, whole[:-101])
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_w4_a_refusal_does_not_wait_for_the_body(build: Build) -> None:
    async with build(Limits(max_body_bytes=100, body_timeout_s=60.0, body_idle_timeout_s=60.0)) as house:
        for key in (None, await house.key()):
            wire = await house.connect()
            await wire.send(request(key, b"", headers={"content-length": "4000000000"}))
            assert (await wire.answer()).status == (401 if key is None else 413)


WRONG = {"model": "none", "messages": "none", "max_tokens": -1}


@pytest.mark.parametrize(
    ("lines", "body", "told"),
    [
        pytest.param({"host": "a b", "authorization": "x"}, b"a" * 200, (400, None), id="framing"),
        pytest.param({"authorization": "Bearer sk-x"}, b"a" * 200, (401, "invalid_api_key"), id="key"),
        pytest.param({"content-encoding": "br"}, b"a" * 200, (415, "unsupported_media_type"), id="encoding"),
        pytest.param({}, b"a" * 200, (413, "request_too_large"), id="size"),
        pytest.param({}, json.dumps(WRONG).encode()[:-1], (400, None), id="JSON"),
        pytest.param({}, json.dumps(WRONG).encode(), (400, "integer_below_min_value"), id="schema"),
        pytest.param({}, json.dumps(WRONG | {"max_tokens": 1}).encode(), (404, "model_not_found"), id="model"),
    ],
)
async def test_c2_what_is_cheap_to_see_is_refused_first(
    build: Build, lines: dict[str, str], body: bytes, told: tuple[int, str | None]
) -> None:
    """Each case is wrong in all that comes after it, too."""
    async with build(Limits(max_body_bytes=150)) as house:
        key = await house.key("one")
        answer = await sent(house, request(key, body, headers=lines))
        assert (answer.status, answer.error["code"]) == told
        # Nothing was taken from the minute's only request, and nobody was asked to count.
        assert house.sidecar.counted == []
        good = json.dumps(chat(stream=False)).encode()
        assert (await sent(house, request(key, good))).status == 200


async def test_another_expectation_is_refused(house: House) -> None:
    answer = await sent(house, request(await house.key(), chat(), headers={"expect": "wonders"}))
    assert answer.status == 417


async def test_a_gzip_body_is_inflated(house: House) -> None:
    body = gzip.compress(json.dumps(chat(stream=False)).encode())
    answer = await sent(house, request(await house.key(), body, headers={"content-encoding": "gzip"}))
    assert (answer.status, answer.body) == (200, WHOLE)


async def test_w5_a_gzip_bomb_is_refused(house: House) -> None:
    bomb = gzip.compress(b" " * 64 * 1024 * 1024)
    answer = await sent(house, request(await house.key(), bomb, headers={"content-encoding": "gzip"}))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_w5_a_bomb_is_not_inflated_beyond_what_a_body_may_have(house: House) -> None:
    bomb = gzip.compress(b" " * 256 * 1024 * 1024, compresslevel=9)
    key = await house.key()
    tracemalloc.start()
    try:
        for _ in range(3):
            answer = await sent(house, request(key, bomb, headers={"content-encoding": "gzip"}))
            assert answer.status == 413
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 32 * 1024 * 1024


async def test_w5_bombs_within_a_bomb_are_not_opened(house: House) -> None:
    inner = gzip.compress(b" " * 64 * 1024 * 1024)
    answer = await sent(house, request(await house.key(), gzip.compress(inner), headers={"content-encoding": "gzip"}))
    assert (answer.status, answer.error["code"]) == (400, None)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"no gzip", id="none"),
        pytest.param(gzip.compress(b"{}")[:-4], id="cut"),
        pytest.param(gzip.compress(b"{}") + b"more", id="more"),
    ],
)
async def test_w5_broken_gzip_is_a_400(house: House, body: bytes) -> None:
    answer = await sent(house, request(await house.key(), body, headers={"content-encoding": "gzip"}))
    assert answer.status == 400


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
async def test_w5_another_encoding_is_a_415(house: House, encoding: str) -> None:
    answer = await sent(house, request(await house.key(), b"abc", headers={"content-encoding": encoding}))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


async def test_a_body_that_is_no_json_is_a_400(house: House) -> None:
    answer = await sent(house, request(await house.key(), b'{"model": NaN}'))
    assert (answer.status, answer.error["code"]) == (400, None)
    assert "NaN" not in answer.error["message"]


async def test_w1_a_refusal_says_close_while_the_rest_of_the_body_is_in_the_way(build: Build) -> None:
    async with build(Limits(max_body_bytes=100)) as house:
        key = await house.key()
        wire = await house.connect()
        await wire.send(request(key, b"a" * 200)[:-50])
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_w1_a_refused_body_that_is_here_is_not_taken_for_the_next_request(build: Build) -> None:
    async with build(Limits(max_body_bytes=100)) as house:
        key = await house.key()
        inner = request(key, method="GET", path="/v1/models")
        wire = await house.connect()
        await wire.send(request(key, inner) + request(None, method="GET", path="/v1/models"))
        assert [(await wire.answer()).status for _ in range(2)] == [413, 401]


async def test_a_client_that_leaves_in_its_body_is_gone(house: House) -> None:
    wire = await house.connect()
    await wire.send(request(await house.key(), b"", headers={"content-length": "10"}) + b"abc")
    await asyncio.sleep(0)
    await wire.close()
    line = await house.line()
    assert (line["status"], line["ending"]) == (499, "client_gone")
