"""Requests that wait for others of their key to end: in order, in time, and gone with their client."""

import asyncio

from tests.fakes.sidecar import DONE, FINISH, delta, usage_comment
from tests.wire.proxy.house import House, Wire, chat


def held(house: House) -> asyncio.Event:
    """Have the sidecar's answers wait."""
    go = asyncio.Event()
    house.sidecar.script = (delta("Hello"), go, usage_comment(2), FINISH + DONE)
    return go


async def waiting(house: House) -> float:
    """How many wait, by the metrics."""
    wire = await house.connect(admin=True)
    await wire.send(b"GET /metrics HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
    answer = await wire.answer()
    (line,) = [line for line in answer.body.decode().splitlines() if line.startswith("tollhouse_proxy_queue_depth ")]
    return float(line.split()[1])


async def lined_up(house: House, count: int) -> None:
    for _ in range(1000):
        if await waiting(house) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{await waiting(house)} wait, not {count}")


async def one_more(house: House, key: str, count: int) -> Wire:
    wire = await house.ask(key, chat())
    await lined_up(house, count)
    return wire


async def test_who_waits_is_served_in_order_and_who_leaves_is_gone(house: House) -> None:
    go, key = held(house), await house.key("waiting")
    running = await house.ask(key, chat())
    await house.until(lambda: len(house.sidecar.received) == 1)
    leaving = await one_more(house, key, 1)
    staying = await one_more(house, key, 2)
    full = await (await house.ask(key, chat())).answer()
    assert (full.status, full.error["code"]) == (429, "concurrency_limit_exceeded")
    await leaving.close()
    await lined_up(house, 1)
    assert len(house.sidecar.received) == 1
    go.set()
    assert [(await wire.answer()).status for wire in (running, staying)] == [200, 200]
    assert len(house.sidecar.received) == 2
    (gone,) = [line for line in house.lines("request") if line["ending"] == "client_gone"]
    assert gone["status"] == 499
    assert "upstream" not in gone
    await lined_up(house, 0)
    assert (await (await house.ask(key, chat())).answer()).status == 200


async def test_who_has_waited_long_enough_is_refused_as_if_nobody_waited(house: House) -> None:
    go, key = held(house), await house.key("wary")
    running = await house.ask(key, chat())
    await house.until(lambda: len(house.sidecar.received) == 1)
    refused = await (await house.ask(key, chat())).answer()
    assert (refused.status, refused.error["code"]) == (429, "concurrency_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    go.set()
    assert (await running.answer()).status == 200


async def test_a12_a_key_that_is_revoked_waits_no_longer(house: House) -> None:
    go, key = held(house), await house.key("waiting")
    running = await house.ask(key, chat())
    await house.until(lambda: len(house.sidecar.received) == 1)
    second = await one_more(house, key, 1)
    await house.revoke(key)
    answer = await second.answer()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    go.set()
    await running.close()
    await lined_up(house, 0)
