"""Connections by the hundred: slow ones, idle ones, and more than there is room for. Good clients notice nothing."""

import asyncio
import json

import pytest

from proxy import door, memory
from proxy.settings import Limits
from tests.fakes.sidecar import WHOLE
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, Wire, chat, request

PARTIAL = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"


async def answered(house: House, key: str) -> Answer:
    return await (await house.ask(key, chat(stream=False))).answer()


async def refused(wire: Wire) -> None:
    answer = await wire.answer()
    assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")
    assert answer.headers["connection"] == "close"
    assert await wire.closed()


async def scraped(house: House, name: str) -> float:
    wire = await house.connect(admin=True)
    await wire.send(request(None, method="GET", path="/metrics"))
    page = (await wire.answer()).body.decode()
    return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[-1])


async def test_w6_one_connection_too_many_is_told_and_closed(build: Build) -> None:
    async with build(Limits(max_connections=2)) as house:
        key = await house.key()
        kept = [await house.connect() for _ in range(2)]
        for wire in kept:
            await wire.send(request(key, method="GET", path="/v1/models"))
            assert (await wire.answer()).status == 200
        assert await scraped(house, "tollhouse_proxy_connections") == 2
        await refused(await house.connect())
        # A whole request was on its way already: the answer still gets through.
        await refused(await house.ask(key, b"a" * 200_000))
        assert await scraped(house, 'tollhouse_proxy_connections_refused_total{reason="connections"}') == 2
        line = await house.line("connections_refused")
        assert (line["reason"], line["count"]) == ("connections", 1)
        await kept[0].close()
        while await scraped(house, "tollhouse_proxy_connections") > 1:
            pass
        assert (await answered(house, key)).body == WHOLE


async def test_w6_strangers_of_one_address_wait_and_are_refused_in_the_end(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "WAIT_S", 0.1)
    async with build(Limits(max_connections_per_address=2)) as house:
        for _ in range(2):
            await (await house.connect()).send(PARTIAL)
        waiting = await house.connect()
        await waiting.send(PARTIAL)
        await refused(waiting)
        assert await scraped(house, 'tollhouse_proxy_connections_refused_total{reason="address"}') == 1


@pytest.mark.usefixtures("patient_door")
async def test_w6_good_clients_of_a_full_address_get_their_turn(build: Build) -> None:
    async with build(Limits(max_connections_per_address=4)) as house:
        key = await house.key()
        kept = await asyncio.gather(*(house.connect() for _ in range(20)))
        for wire in kept:
            await wire.send(request(key, chat(stream=False)))
        assert {(await wire.answer()).status for wire in kept} == {200}
        # They have shown their key: being open they are in nobody's way.
        assert (await answered(house, key)).status == 200
        assert await scraped(house, "tollhouse_proxy_connections") == 21


@pytest.mark.usefixtures("patient_door")
async def test_w6_who_has_no_key_leaves_the_seat_to_who_has(build: Build) -> None:
    async with build(Limits(max_connections_per_address=1)) as house:
        key = await house.key()
        stranger = await house.connect()
        good = await house.ask(key, chat(stream=False))
        await stranger.send(request(None, method="GET", path="/v1/models", headers={"connection": "close"}))
        assert (await stranger.answer()).status == 401
        assert (await good.answer()).body == WHOLE


@pytest.mark.parametrize("full", [92.0, 97.0])
async def test_w6_without_memory_nothing_new_is_taken_and_the_operator_is_heard(
    build: Build, monkeypatch: pytest.MonkeyPatch, full: float
) -> None:
    share = 10.0
    monkeypatch.setattr(memory, "read_percent", lambda *_: share)
    monkeypatch.setattr(memory, "EVERY_S", 0.01)
    async with build() as house:
        key = await house.key()
        share = full
        await house.line("memory_low")
        answer = await answered(house, key)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (
            503,
            "server_is_overloaded",
            "1",
        )
        assert ("x-request-id" in answer.headers) is (full < 95)
        probe = await house.connect(admin=True)
        await probe.send(request(None, method="GET", path="/readyz"))
        assert (await probe.answer()).status == 200
        share = 10.0
        await house.line("memory_recovered")
        assert (await answered(house, key)).body == WHOLE


async def test_w2_two_hundred_slow_heads_end_and_good_clients_are_served_meanwhile(build: Build) -> None:
    async with build(Limits(head_timeout_s=4.0, max_connections_per_address=201)) as house:
        key = await house.key()

        async def begun() -> Wire:
            wire = await house.connect()
            await wire.send(PARTIAL[:1])
            return wire

        slow = await asyncio.gather(*(begun() for _ in range(200)))

        async def drip() -> None:
            for byte in PARTIAL[1:30]:
                for wire in slow:
                    # One that was told already hears no more.
                    if not wire.writer.transport.is_closing():
                        wire.writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        for _ in range(20):
            assert (await answered(house, key)).status == 200
        assert {(await wire.answer()).status for wire in slow} == {408}
        assert all([await wire.closed() for wire in slow])
        await dripping


async def test_w2_a_body_that_pauses_too_long_is_a_408(build: Build) -> None:
    async with build(Limits(body_idle_timeout_s=2.0)) as house:
        wire = await house.connect()
        await wire.send(request(await house.key(), b"", headers={"content-length": "10"}))
        for _ in range(5):
            # Each piece in time: the pause is counted anew, and the whole takes longer than one.
            await wire.send(b"a")
            await asyncio.sleep(0.5)
        answer = await wire.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert (await house.line())["duration_ms"] > 4000


async def test_w2_a_body_that_drips_for_ever_is_a_408(build: Build) -> None:
    async with build(Limits(body_timeout_s=0.4, body_idle_timeout_s=0.3)) as house:
        wire = await house.connect()
        await wire.send(request(await house.key(), b"", headers={"content-length": "100"}))

        async def drip() -> None:
            while True:
                await wire.send(b"a")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        assert (await wire.answer()).status == 408
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_w2_an_idle_connection_is_closed(build: Build) -> None:
    async with build(Limits(keep_alive_s=0.1)) as house:
        wire = await house.connect()
        await wire.send(request(await house.key(), method="GET", path="/v1/models"))
        assert (await wire.answer()).status == 200
        assert await wire.closed()


async def test_w10_the_address_in_the_log_is_the_proxy_s_word_only_if_it_is_trusted(build: Build) -> None:
    forwarded = {"x-forwarded-for": "1.1.1.1, 203.0.113.7"}
    for trusted, address in (((), "127.0.0.1"), (("127.0.0.0/8",), "203.0.113.7")):
        async with build(trusted_proxies=trusted) as house:
            wire = await house.connect()
            await wire.send(request(await house.key(), method="GET", path="/v1/models", headers=forwarded))
            assert (await wire.answer()).status == 200
            assert (await house.line())["address"] == address


async def test_w10_the_proxy_protocol_is_no_request(house: House) -> None:
    wire = await house.connect()
    await wire.send(b"PROXY TCP4 203.0.113.7 127.0.0.1 5000 8000\r\n" + request(await house.key()))
    assert (await wire.answer()).status == 400
    assert await wire.closed()
    assert (await house.line())["address"] == "127.0.0.1"


async def test_w10_failures_count_for_the_client_behind_the_proxy(build: Build) -> None:
    async with build(Limits(auth_failures_per_minute=1), trusted_proxies=("127.0.0.1",)) as house:
        statuses = []
        for client in ("203.0.113.7", "203.0.113.7", "203.0.113.8"):
            wire = await house.connect()
            await wire.send(request("sk-x", method="GET", path="/v1/models", headers={"x-forwarded-for": client}))
            statuses.append((await wire.answer()).status)
        assert statuses == [401, 429, 401]


def test_a_refusal_at_the_door_is_one_whole_answer() -> None:
    head, _, body = door.ANSWER.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["error"]["code"] == "server_is_overloaded"
