"""A storage that fails: nothing is let in, what runs is booked when it works again, and nothing needs a new start."""

import asyncio
import contextlib
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.settings import Timeouts
from proxy.store.address import file_of
from tests.fakes.sidecar import DONE, FINISH, STREAM, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, Wire, chat, request

Fault = Callable[[Path], "contextlib.AbstractContextManager[None]"]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program has begun to write, and does not end."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def full(path: Path) -> Iterator[None]:
    """No file can grow: what the write-ahead log needs cannot be written. (Python ignores the signal.)"""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    now = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (now, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


async def ask(house: House, key: str) -> Answer:
    return await (await house.ask(key, chat(stream=False))).answer()


async def models(house: House, key: str) -> Answer:
    wire: Wire = await house.connect()
    await wire.send(request(key, method="GET", path="/v1/models"))
    return await wire.answer()


async def test_f6_a_file_that_is_locked_refuses_and_recovers(build: Build) -> None:
    await refuse_and_recover(build, locked)


async def test_f7_a_disk_that_is_full_refuses_and_recovers(build: Build) -> None:
    await refuse_and_recover(build, full)


async def refuse_and_recover(build: Build, fault: Fault) -> None:
    async with build(timeouts=Timeouts(drain_s=5.0, storage_s=1.0)) as house:
        key = await house.key()
        path = file_of(house.settings.database)
        assert (await ask(house, key)).status == 200
        ending = asyncio.Event()
        house.sidecar.script = [delta("a"), ending, usage_comment(3), FINISH + DONE]
        running = await house.ask(key)
        assert (await running.head())[0] == 200
        assert await running.chunk() == delta("a")
        house.sidecar.script = STREAM
        with fault(path):
            refused = await ask(house, key)
            assert (refused.status, refused.error["code"]) == (503, "storage_unavailable")
            assert refused.headers["retry-after"] == "2"
            # What needs no writing goes on.
            assert (await models(house, key)).status == 200
            ending.set()
            # A whole answer would say that it is booked.
            told = await running.answer_rest()
            assert b"storage_unavailable" in told
            assert b"[DONE]" not in told
            assert [row["state"] for row in house.rows()].count("reserved") == 1
        # Its settlement was kept, and is tried again; with that the storage is known to work.
        await house.until(lambda: all(row["state"] != "reserved" for row in house.rows()))
        assert (await ask(house, key)).status == 200
        (cut,) = [row for row in house.rows() if row["stream"] and row["state"] == "settled"]
        assert (cut["prompt_tokens"], cut["completion_tokens"]) == (7, 3)
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
