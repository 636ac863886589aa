"""A database that cannot be written, locked or full, under load: nothing runs unrecorded, and nothing is lost."""

import asyncio
import contextlib
import resource
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from tests.faults.besieged import PROXY, Besieged, until
from tests.faults.crowd import Crowd, Seen
from tests.faults.siege import SEED, check_at_rest

TICKING = (sys.executable, "-m", "tests.fakes.ticking_sidecar", "run/sidecar.sock")
CLIENTS = 12
MODEL = "org/tiny"
# Not even one page more.
FULL = 1
Break = Callable[[Besieged], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def locked(house: Besieged) -> AsyncIterator[None]:
    """Another program writes, and takes its time."""
    other = sqlite3.connect(house.folder / "data/t.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


@contextlib.asynccontextmanager
async def full(house: Besieged) -> AsyncIterator[None]:
    """As if there were no space: no file of the proxy's may grow, nor be written but at its beginning."""
    pid = house.running[PROXY].pid
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.fixture
async def house(tmp_path_factory: Any) -> AsyncIterator[Besieged]:
    house = Besieged(tmp_path_factory.mktemp("k"), TICKING)
    yield house
    await house.tear_down()


async def test_f6_a_locked_database_is_a_503_and_reads_go_on(house: Besieged) -> None:
    await storage_fails(house, locked)


async def test_f7_a_full_disk_is_a_503_and_reads_go_on(house: Besieged) -> None:
    await storage_fails(house, full)
    connection = sqlite3.connect(f"file:{house.folder}/data/t.db?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def storage_fails(house: Besieged, breaking: Break) -> None:
    """While it does, and after."""
    keys = await house.set_up()
    async with Crowd(MODEL, lambda: house.port, keys, CLIENTS, SEED, embedder=MODEL) as crowd:
        await until(lambda: has(crowd.seen, lambda one: one.complete), "a whole answer")
        async with breaking(house):
            before = len(crowd.seen)
            await until(lambda: has(crowd.seen[before:], refused), "a refusal")
            assert await models(house, keys["open"]) == 200
        before = len(crowd.seen)
        # The same process, with nothing done to it.
        await until(lambda: has(crowd.seen[before:], lambda one: one.complete), "a whole answer again")
        async with crowd.at_rest():
            await check_at_rest(house, crowd.seen)
    assert {one.status for one in crowd.seen} <= {0, 200, 429, 503}
    assert house.starts == 3


async def has(seen: list[Seen], what: Callable[[Seen], bool]) -> bool:
    await asyncio.sleep(0)
    return any(map(what, seen))


def refused(one: Seen) -> bool:
    return one.status == 503 and one.code == "storage_unavailable"


async def models(house: Besieged, key: str) -> int:
    url = f"http://127.0.0.1:{house.port}/v1/models"
    async with aiohttp.ClientSession() as session, session.get(url, headers=bearer(key)) as response:
        return response.status


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
