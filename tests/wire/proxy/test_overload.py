"""A sidecar with a full queue: who is refused, with which bytes, and who still comes through."""

import asyncio
from typing import Any

from tests.fakes.sidecar import DONE, FINISH, FakeSidecar, delta, usage_comment
from tests.wire.proxy.house import chat


def small(sidecar: FakeSidecar) -> None:
    sidecar.max_sequences, sidecar.max_queue = 1, 2


async def test_f15_the_lowest_priority_gives_way_first_and_is_told_when_to_come_again(build: Any) -> None:
    async with build(prepare=small) as house:
        go = asyncio.Event()
        house.sidecar.script = (delta("Hello"), go, usage_comment(2), FINISH + DONE)
        last, first = await house.key("under"), await house.key("upper")
        running = [await house.ask(last, chat()) for _ in range(2)]
        await house.until(lambda: len(house.sidecar.received) == 2)
        refused = await (await house.ask(last, chat())).answer()
        assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
        assert refused.error["type"] == "service_unavailable_error"
        assert (refused.headers["x-should-retry"], refused.headers["retry-after"]) == ("true", "5")
        running.append(await house.ask(first, chat()))
        await house.until(lambda: len(house.sidecar.received) == 3)
        full = await (await house.ask(first, chat())).answer()
        assert (full.status, full.error["code"]) == (503, "server_is_overloaded")
        go.set()
        assert [(await wire.answer()).status for wire in running] == [200] * 3
        assert (await (await house.ask(last, chat())).answer()).status == 200
        line = next(line for line in house.lines("request") if line["status"] == 503)
        assert (line["rule"], line["ending"]) == ("overload", "refused")
