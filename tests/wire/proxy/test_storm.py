"""Many clients that leave at once, each at another moment: nothing is left running, held or unpaid."""

import asyncio
import random

import pytest

from proxy.admin.client import AdminClient
from proxy.settings import Limits
from tests.fakes.sidecar import DONE, FINISH, WHOLE, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request

CLIENTS = 40
# As far as a client gets before it leaves.
MOMENTS = ("connected", "head begun", "head", "body begun", "asked", "answer begun", "first chunk")


async def leave_at(house: House, key: str, moment: str, *, stream: bool) -> None:
    wire = await house.connect()
    whole = request(key, chat(stream=stream))
    head, _, _ = whole.partition(b"\r\n\r\n")
    sent = {"connected": 0, "head begun": 20, "head": len(head) + 4, "body begun": len(head) + 14}.get(
        moment, len(whole)
    )
    await wire.send(whole[:sent])
    if moment in {"answer begun", "first chunk"} and stream:
        await wire.head()
    if moment == "first chunk" and stream:
        await wire.chunk()
    wire.writer.transport.abort()


@pytest.mark.parametrize("seed", range(3))
async def test_w7_a_storm_of_clients_that_leave_holds_nothing(build: Build, seed: int) -> None:
    rng = random.Random(seed)
    async with build(Limits(max_connections_per_address=CLIENTS)) as house:
        house.sidecar.script = [delta("a"), asyncio.Event()]
        house.sidecar.always_produced = 2
        key = await house.key("narrow")
        leaving = [leave_at(house, key, rng.choice(MOMENTS), stream=rng.random() < 0.7) for _ in range(CLIENTS)]
        await asyncio.gather(*leaving)
        async with asyncio.timeout(30), AdminClient(house.settings.admin.socket) as client:
            while (await client.state()).requests_in_progress:
                pass
        rows = await asyncio.to_thread(house.rows)
        assert {row["state"] for row in rows} <= {"settled", "void"}
        assert {row["reason"] for row in rows} <= {"client_gone"}
        # Every one that reached the sidecar was stopped there, and paid for what it had produced.
        assert len(house.sidecar.cancelled) >= len(house.sidecar.received)
        # As many as the key may have at once: not one place is lost.
        house.sidecar.script = [delta("a"), usage_comment(2), FINISH + DONE]
        wires = [await house.ask(key, chat(stream=False)) for _ in range(CLIENTS)]
        assert [(await wire.answer()).body for wire in wires] == [WHOLE] * CLIENTS


async def test_w7_the_sidecar_is_told_of_each_client_that_left(house: House) -> None:
    house.sidecar.script = [delta("a"), asyncio.Event()]
    house.sidecar.always_produced = 1
    key = await house.key("narrow")
    wires = [await house.ask(key) for _ in range(CLIENTS)]
    for wire in wires:
        await wire.head()
        await wire.chunk()
    for wire in wires:
        wire.writer.transport.abort()
    await house.until(lambda: len(house.sidecar.cancelled) == CLIENTS)
    await house.until(lambda: {row["state"] for row in house.rows()} == {"settled"})
    assert {line["ending"] for line in house.lines("request")} == {"client_gone"}
