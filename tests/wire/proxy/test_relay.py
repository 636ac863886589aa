"""What a client gets, byte for byte, and what the books say afterwards."""

import asyncio

import pytest

from sidecar.wire import internal
from tests.fakes.sidecar import DONE, FINISH, MODEL, WHOLE, delta, usage_comment
from tests.wire.proxy.house import WAIT_S, House, chat, request


async def test_a_stream_is_relayed_byte_for_byte_without_the_usage_comment(house: House) -> None:
    wire = await house.ask(await house.key())
    answer = await wire.answer()
    assert (answer.status, answer.whole) == (200, True)
    assert answer.body == delta("Hello") + delta(" you") + FINISH + DONE
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    line = await house.line()
    assert (line["status"], line["ending"], line["completion_tokens"], line["cached_tokens"]) == (200, "complete", 3, 2)
    row = await house.row("settled")
    assert row["request_id"] == line["request_id"] == answer.headers["x-request-id"]
    assert (row["prompt_tokens"], row["completion_tokens"], row["reason"]) == (7, 3, "complete")


async def test_a_stream_cut_at_every_byte_comes_out_the_same(house: House) -> None:
    raw = delta("é") + delta("b") + usage_comment(2) + FINISH + DONE
    key = await house.key()
    for size in (1, 7, 64):
        house.sidecar.script = [raw[at : at + size] for at in range(0, len(raw), size)]
        answer = await (await house.ask(key)).answer()
        assert answer.body == delta("é") + delta("b") + FINISH + DONE
        assert answer.whole


async def test_the_head_waits_for_the_first_event_and_the_end_for_the_settlement(house: House) -> None:
    more = asyncio.Event()
    house.sidecar.script = [delta("a"), usage_comment(1), FINISH, more, DONE]
    wire = await house.ask(await house.key())
    status, _ = await wire.head()
    assert (status, await wire.chunk()) == (200, delta("a"))
    assert house.rows()[0]["state"] == "reserved"
    more.set()
    assert (await wire.chunk(), await wire.chunk()) == (FINISH + DONE, b"")
    # A complete answer implies a settled row: no waiting here.
    assert house.rows()[0]["state"] == "settled"


async def test_a_whole_answer_is_relayed_byte_for_byte(house: House) -> None:
    wire = await house.ask(await house.key(), chat(stream=False))
    answer = await wire.answer()
    assert (answer.status, answer.body) == (200, WHOLE)
    assert answer.headers["content-type"] == "application/json"
    assert house.rows()[0]["state"] == "settled"


async def test_the_sidecar_gets_the_reservation_and_nothing_of_the_client_s_head(house: House) -> None:
    key = await house.key()
    headers = {"cookie": "a=b", "x-forwarded-for": "1.2.3.4", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    await (await house.ask(key, headers=headers)).answer()
    (received,) = house.sidecar.received
    assert received.body["model"] == MODEL
    assert received.headers[internal.REQUEST_ID].startswith("req_")
    assert received.headers[internal.TENANT].startswith("acct_")
    assert received.headers[internal.PRIORITY] == "3"
    assert received.headers[internal.WEIGHT] == "1"
    assert received.headers[internal.CACHE_SCOPE] == f"a:{received.headers[internal.TENANT]}"
    assert received.headers[internal.MAX_OUTPUT_TOKENS] == "8"
    assert int(received.headers[internal.MAX_TOTAL_TOKENS]) > 8
    assert received.headers["traceparent"].startswith(f"00-{'a' * 32}-")
    assert not {"cookie", "authorization", "x-forwarded-for"} & set(received.headers)


async def test_what_the_sidecar_refuses_is_told_as_it_said_it_and_costs_nothing(house: House) -> None:
    error = {
        "message": "temperature is hot",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_type",
    }
    house.sidecar.refusal = (400, error, {})
    answer = await (await house.ask(await house.key())).answer()
    assert (answer.status, answer.error) == (400, error)
    row = await house.row("void")
    assert (row["reason"], row["status"], row["completion_tokens"]) == ("upstream_refused", 400, 0)


async def test_f15_an_overloaded_sidecar_s_retry_headers_are_passed_on(house: House) -> None:
    error = {"message": "full", "type": "service_unavailable_error", "param": None, "code": "server_is_overloaded"}
    house.sidecar.refusal = (503, error, {"retry-after": "7", "x-should-retry": "true", "x-secret": "1"})
    answer = await (await house.ask(await house.key())).answer()
    assert (answer.status, answer.headers["retry-after"], answer.headers["x-should-retry"]) == (503, "7", "true")
    assert "x-secret" not in answer.headers


async def test_two_requests_share_a_connection(house: House) -> None:
    key = await house.key()
    wire = await house.connect()
    ids = set()
    for _ in range(2):
        await wire.send(request(key, chat()))
        answer = await wire.answer()
        ids.add(answer.headers["x-request-id"])
        assert answer.whole
    assert len(ids) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_rate_limit_refuses_the_second_request_and_says_so(house: House, stream: bool) -> None:
    key = await house.key("one")
    first = await (await house.ask(key, chat(stream=stream))).answer()
    assert (first.status, first.headers["x-ratelimit-limit-requests"]) == (200, "1")
    second = await (await house.ask(key, chat(stream=stream))).answer()
    assert (second.status, second.error["code"], second.error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert len(house.sidecar.received) == 1
    line = await house.line(count=2)
    assert (line["status"], line["ending"], line["error_code"]) == (429, "refused", "rate_limit_exceeded")
    await house.until(lambda: len(house.rows()) == 2)
    assert {row["state"]: row["rule"] for row in house.rows()} == {"settled": None, "refused": "requests_per_minute"}


@pytest.mark.usefixtures("patient_door")
async def test_a_hundred_streams_at_once_are_a_hundred_settled_rows(house: House) -> None:
    key = await house.key()

    async def one() -> bytes:
        return (await (await house.ask(key)).answer()).body

    bodies = await asyncio.gather(*(one() for _ in range(100)))
    assert set(bodies) == {delta("Hello") + delta(" you") + FINISH + DONE}
    rows = house.rows()
    assert [row["state"] for row in rows] == ["settled"] * 100
    assert len({row["request_id"] for row in rows}) == 100


@pytest.mark.usefixtures("patient_door")
async def test_a_hundred_at_once_against_a_small_quota_overshoot_by_nothing(house: House) -> None:
    key = await house.key("few")

    async def one() -> int:
        return (await (await house.ask(key)).answer()).status

    statuses = await asyncio.gather(*(one() for _ in range(100)))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) * 10 <= 100
    assert len(house.sidecar.received) == statuses.count(200)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_http_1_0_answer_has_no_chunks_and_ends_with_its_connection(house: House, stream: bool) -> None:
    wire = await house.connect()
    await wire.send(request(await house.key(), chat(stream=stream)).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"))
    async with asyncio.timeout(WAIT_S):
        head, _, body = (await wire.reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == (delta("Hello") + delta(" you") + FINISH + DONE if stream else WHOLE)
