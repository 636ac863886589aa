"""A Postgres that is killed under a proxy: nothing is let in, and what ran meanwhile is booked when it is back."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from proxy.settings import Database, Timeouts
from proxy.store import migrate
from tests.fakes.postgres import Postgres, running
from tests.fakes.sidecar import DONE, FINISH, STREAM, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, Wire, chat, request

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)
PROBE_S, PROBES = 0.1, 100


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """One of its own: others go on with theirs."""
    with running() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Database:
    settings = Database(url=postgres.url("postgres"), busy_timeout_s=0.5, connect_timeout_s=1.0)
    migrate.upgrade(settings)
    return settings


async def ask(house: House, key: str) -> Answer:
    return await (await house.ask(key, chat(stream=False))).answer()


async def readiness(wire: Wire) -> tuple[int, str]:
    await wire.send(request(None, method="GET", path="/readyz"))
    answer = await wire.answer()
    return answer.status, json.loads(answer.body)["reason"]


async def until_ready_is(probe: Wire, told: tuple[int, str]) -> None:
    for _ in range(PROBES):
        if await readiness(probe) == told:
            return
        await asyncio.sleep(PROBE_S)
    assert await readiness(probe) == told


async def test_an_idle_proxy_without_its_postgres_is_not_ready_until_it_is_back(
    build: Build, postgres: Postgres
) -> None:
    async with build(timeouts=Timeouts(drain_s=5.0, storage_s=1.0)) as house:
        probe = await house.connect(admin=True)
        await until_ready_is(probe, (200, ""))
        await asyncio.to_thread(postgres.kill)
        await until_ready_is(probe, (503, "storage"))
        # It stays so: a beat that fails leaves no queue behind.
        for _ in range(PROBES // 4):
            assert await readiness(probe) == (503, "storage")
            await asyncio.sleep(PROBE_S)
        await asyncio.to_thread(postgres.start)
        await until_ready_is(probe, (200, ""))


async def test_f5_a_postgres_that_is_killed_refuses_and_recovers(build: Build, postgres: Postgres) -> None:
    async with build(timeouts=Timeouts(drain_s=5.0, storage_s=1.0)) as house:
        key = await house.key()
        assert (await ask(house, key)).status == 200
        ending = asyncio.Event()
        house.sidecar.script = [delta("a"), ending, usage_comment(3), FINISH + DONE]
        stream = await house.ask(key)
        assert (await stream.head())[0] == 200
        assert await stream.chunk() == delta("a")
        house.sidecar.script = STREAM
        await asyncio.to_thread(postgres.kill)
        for _ in range(2):
            refused = await ask(house, key)
            assert (refused.status, refused.error["code"]) == (503, "storage_unavailable")
            assert refused.headers["retry-after"] == "2"
        ending.set()
        told = await stream.answer_rest()
        assert b"storage_unavailable" in told
        assert b"[DONE]" not in told
        await asyncio.to_thread(postgres.start)
        async with asyncio.timeout(30):
            while "settled" not in await states(house, stream=True):
                assert not house.task.done()
        assert (await ask(house, key)).status == 200
        (row,) = [row for row in await asyncio.to_thread(house.rows) if row["stream"]]
        assert (row["state"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", 7, 3)


async def states(house: House, *, stream: bool) -> set[str]:
    return {row["state"] for row in await asyncio.to_thread(house.rows) if row["stream"] is stream}
