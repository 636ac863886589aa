"""A Postgres that is killed under a proxy: nothing is let in, and what ran meanwhile is booked when it is back."""

import asyncio
from collections.abc import Iterator

import pytest

from proxy.settings import Database, Timeouts
from proxy.store import migrate
from tests.fakes.postgres import Postgres, running
from tests.fakes.sidecar import DONE, FINISH, STREAM, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, chat

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


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
        async with asyncio.timeout(5):
            while "settled" not in await states(house, stream=True):
                assert not house.task.done()
        assert (await ask(house, key)).status == 200
        (row,) = [row for row in await asyncio.to_thread(house.rows) if row["stream"]]
        assert (row["state"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", 7, 3)


async def states(house: House, *, stream: bool) -> set[str]:
    return {row["state"] for row in await asyncio.to_thread(house.rows) if row["stream"] is stream}
