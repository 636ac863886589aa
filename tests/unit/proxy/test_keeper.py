"""Who lives shows it; who does not is taken over, by one who can be sure."""

import asyncio
import dataclasses
import datetime as dt
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.keeper import BEAT_S, FORGET_EVERY_S, PAUSE_S, Keeper, Trade, keep_log
from proxy.settings import Database as DatabaseSettings
from proxy.store.boots import Boots
from proxy.store.database import StorageError
from proxy.store.ledger import Ledger, Standing
from sidecar.jsonlog import JsonLog
from sidecar.wire.internal import RequestState
from tests.fakes.proxy import FakeClock, FakeUpstream
from tests.unit.proxy.store.conftest import Records, Store, opened

make = Records()


class Clock(FakeClock):
    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Beats:
    """The waits between two beats: each ends when the test says so, and takes its time of the clock."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._due = asyncio.Event()
        self._waits = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self._waits.set()
        await self._due.wait()
        self._due.clear()
        self._clock.advance(seconds)

    async def one(self) -> None:
        """Let one beat happen, with all that comes of it."""
        await self._waits.wait()
        self._waits.clear()
        self._due.set()
        await self._waits.wait()


@pytest.fixture
async def store(on_postgres: DatabaseSettings) -> AsyncIterator[Store]:
    async with opened(on_postgres, FakeClock(), make) as store:
        yield store


def trade(store: Store, *sidecars: FakeUpstream, shared: bool = True) -> Trade:
    asked: Any = sidecars
    boots = Boots(store.writer, shared=shared)
    return Trade(boots, store.ledger, asked, Clock(), JsonLog(io.StringIO()), shared)


async def leave(store: Store, boot_id: str, **changes: Any) -> None:
    """A process that dies with a request running."""
    await store.boots.begin(make.boot(boot_id))
    await Ledger(store.writer, boot_id).reserve(make.entry(f"req_{boot_id}", 100, **changes))


async def lapse(store: Store) -> None:
    async with store.database.write() as connection:
        await connection.exec_driver_sql("UPDATE boot SET seen = seen - interval '16 seconds' WHERE id <> 'boot_1'")


async def running(keeper: Keeper) -> AsyncIterator[None]:
    task = asyncio.create_task(keeper.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def open_tokens(store: Store) -> int:
    return (await store.ledger.standing("key_a", make.period)).reserved_tokens


async def test_f1_a_running_process_takes_over_from_one_that_died(store: Store) -> None:
    upstream = FakeUpstream()
    upstream.cancel_answer = RequestState(True, False, 7, 4)
    with_it = trade(store, upstream)
    beats = Beats(with_it.clock)
    keeper = Keeper("boot_1", with_it, beats)
    await keeper.begin()
    await leave(store, "boot_0")
    async for _ in running(keeper):
        for _ in range(4):
            await beats.one()
        assert await open_tokens(store) == 100
        await lapse(store)
        await beats.one()
        assert await store.ledger.standing("key_a", make.period) == Standing(11, 0, 1, 0)
    assert [other.id for other in await store.boots.others("boot_9")] == ["boot_1"]
    assert await store.ledger.check() == []


async def test_f1_on_a_database_of_its_own_it_does_so_at_its_start(on_sqlite: DatabaseSettings) -> None:
    async with opened(on_sqlite, FakeClock(), make) as store:
        await leave(store, "boot_0")
        await Keeper("boot_1", trade(store, shared=False)).begin()
        assert await open_tokens(store) == 0
        assert [other.id for other in await store.boots.others("boot_9")] == ["boot_1"]


async def test_f5_nobody_is_taken_for_dead_right_after_the_server_was_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All leases have lapsed by then, the living ones' too."""
    with_it = trade(store, FakeUpstream())
    beats = Beats(with_it.clock)
    keeper = Keeper("boot_1", with_it, beats)
    await keeper.begin()
    await leave(store, "boot_0")
    async for _ in running(keeper):
        for _ in range(4):
            await beats.one()

        async def away(_boot_id: str) -> None:
            raise StorageError("away")

        with monkeypatch.context() as patched:
            patched.setattr(Boots, "beat", lambda _self, boot_id: away(boot_id))
            await beats.one()
        await lapse(store)
        for _ in range(int(15 / BEAT_S)):
            await beats.one()
            assert await open_tokens(store) == 100
        await beats.one()
        assert await open_tokens(store) == 0


async def test_the_rows_of_another_s_sidecar_are_left_to_those_who_can_ask_it(store: Store) -> None:
    await leave(store, "boot_0", upstream="elsewhere", created=FakeClock().now())
    await lapse(store)
    first = trade(store, FakeUpstream("local"))
    keeper = Keeper("boot_1", first)
    keeper._steady_since_s = first.clock.monotonic() - 60
    await keeper._take_over("here")
    assert await open_tokens(store) == 100
    # It knows no end of it, and lets the lease lapse again.
    await lapse(store)
    knows = FakeUpstream("elsewhere")
    knows.cancel_answer = RequestState(True, False, 7, 4)
    second = trade(store, knows)
    clerk = dataclasses.replace(second, ledger=Ledger(store.writer, "boot_2"))
    keeper = Keeper("boot_2", clerk)
    keeper._steady_since_s = second.clock.monotonic() - 60
    await keeper._take_over("here")
    assert await store.ledger.standing("key_a", make.period) == Standing(11, 0, 1, 0)


async def test_old_requests_are_deleted_at_the_start_and_every_hour_until_none_are_left() -> None:
    class Old:
        """What each deletion finds."""

        def __init__(self) -> None:
            self.found: list[int | Exception] = [200, 7, 0, StorageError("away"), 3, 0]

        async def delete_some(self, now: dt.datetime) -> int:
            if isinstance(found := self.found.pop(0), Exception):
                raise found
            return found

    old, paused, lines = Old(), [], io.StringIO()

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        if not old.found:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await keep_log(old, FakeClock(), JsonLog(lines), pause)
    assert paused == [PAUSE_S, PAUSE_S, FORGET_EVERY_S, FORGET_EVERY_S, PAUSE_S, FORGET_EVERY_S]
    assert [json.loads(line)["count"] for line in lines.getvalue().splitlines()] == [207, 3]
