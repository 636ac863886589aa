"""Nonces in memory and in a real Valkey: used once, never forgotten early, and refused when that cannot be told."""

import asyncio
import contextlib
import datetime as dt
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from proxy.nonces import ValkeyNonces, open_nonces
from proxy.settings import Proxy, Upstream, Valkey
from proxy.settings import Replay as Settings
from proxy.store.claims import ClaimTakenError, Nonce, NotRememberedError
from proxy.store.database import StorageError
from sidecar.jsonlog import JsonLog
from tests.fakes.proxy import NOON, FakeClock
from tests.fakes.valkey import ValkeyServer, running
from tests.fakes.waiting import LIMIT_S

LIFE = dt.timedelta(seconds=330)
NO_VALKEY = Valkey()


def nonce(value: str = "n" * 16, *, made: dt.datetime = NOON, signed: bool = True, key_id: str = "k") -> Nonce:
    return Nonce(key_id, value, made, made + LIFE, signed=signed)


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with running() as started:
        yield started


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, log: io.StringIO | None = None, *, shared: bool = False, valkey: Valkey = NO_VALKEY
) -> AsyncIterator[Any]:
    database: Any = "the database's"
    stream = log or io.StringIO()
    clock = FakeClock()
    clock.seconds = -30.0
    house = Proxy(upstreams=[Upstream(name="local", socket="s.sock")], replay=settings, valkey=valkey)
    async with open_nonces(house, database, clock, JsonLog(stream), shared=shared) as nonces:
        clock.seconds = 0.0
        yield nonces


def in_valkey(server: ValkeyServer) -> Settings:
    return Settings(store="valkey", valkey_url=server.url, valkey_timeout_s=LIMIT_S)


@pytest.fixture(params=["memory", "valkey"])
async def nonces(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    settings = Settings(store="memory")
    if request.param == "valkey":
        settings = in_valkey(request.getfixturevalue("server"))
    async with opened(settings) as store:
        await begun(store)
        yield store


async def begun(store: Any) -> None:
    """A Valkey begins to remember when it is first asked. From `NOON` on signed requests are taken."""
    store._clock.seconds = -30.0
    if isinstance(store, ValkeyNonces):
        assert not await store.seen(nonce("first" * 4, signed=False))
    store._clock.seconds = 0.0


async def test_r_a_nonce_is_used_once(nonces: Any) -> None:
    assert not await nonces.seen(nonce())
    await nonces.spend(nonce(), "req_1")
    assert await nonces.seen(nonce())
    with pytest.raises(ClaimTakenError):
        await nonces.spend(nonce(), "req_2")
    # The same request, once more: the first answer was lost on the way.
    await nonces.spend(nonce(), "req_1")
    assert not await nonces.seen(nonce(key_id="other"))


async def test_r_of_many_at_once_one_has_it(nonces: Any) -> None:
    tried = [nonces.spend(nonce(), f"req_{n}") for n in range(20)]
    done = await asyncio.gather(*tried, return_exceptions=True)
    assert [type(one) for one in done if one is not None] == [ClaimTakenError] * 19


async def test_what_came_to_nothing_is_given_back(nonces: Any) -> None:
    await nonces.spend(nonce(signed=False), "req_1")
    await nonces.release(nonce(signed=False))
    assert not await nonces.seen(nonce(signed=False))
    await nonces.spend(nonce(signed=False), "req_2")


async def test_r_what_was_signed_before_it_remembers_is_refused(nonces: Any) -> None:
    """And what a clock signed that is 30 s ahead of ours: it began to remember at 12:00:00 less 30 s."""
    old = nonce("old" * 6, made=NOON - dt.timedelta(seconds=1))
    for now_s, wait_s in ((-12.0, 12.0), (100.0, 1.0)):
        nonces._clock.seconds = now_s
        with pytest.raises(NotRememberedError) as caught:
            await nonces.seen(old)
        assert caught.value.wait_s == wait_s
    assert not await nonces.seen(nonce("old" * 6, made=old.made, signed=False))


async def test_r_a_full_memory_refuses_and_forgets_nothing() -> None:
    async with opened(Settings(store="memory", max_entries=2)) as store:
        await store.spend(nonce("a" * 16), "req_1")
        await store.spend(nonce("b" * 16), "req_2")
        with pytest.raises(StorageError):
            await store.spend(nonce("c" * 16), "req_3")
        assert await store.seen(nonce("a" * 16))
        assert await store.count() == 2
        await store.forget(NOON + LIFE)
        assert await store.count() == 2
        await store.forget(NOON + LIFE + dt.timedelta(seconds=1))
        assert await store.count() == 0


async def test_f9_what_is_forgotten_counts_as_seen(nonces: Any) -> None:
    """However far the clock goes back, and however far ahead it was when that was forgotten."""
    await nonces.spend(nonce(), "req_1")
    await nonces.forget(NOON + LIFE + dt.timedelta(days=40))
    assert await nonces.seen(nonce())
    assert await nonces.seen(nonce("another" * 3))
    assert not await nonces.seen(nonce("another" * 3, made=NOON + dt.timedelta(seconds=1)))
    assert not await nonces.seen(nonce("another" * 3, signed=False))


async def test_r_memory_is_refused_where_several_processes_may_be() -> None:
    with pytest.raises(StorageError, match="one process"):
        async with opened(Settings(store="memory"), shared=True):
            pass
    async with opened(Settings(), shared=True) as store:
        assert store == "the database's"


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_f8_a_valkey_that_is_away_fails_closed_and_is_used_again_when_it_is_back(
    server: ValkeyServer, how: str
) -> None:
    async with opened(in_valkey(server)) as store:
        await begun(store)
        await store.spend(nonce(), "req_1")
        server.kill() if how == "killed" else server.pause()
        if how == "paused":
            # That it hangs is known by the time alone.
            store._valkey._timeout_s = 0.1
        for asked in (store.seen(nonce()), store.spend(nonce("m" * 16), "req_2"), store.release(nonce())):
            with pytest.raises(StorageError):
                await asked
        server.start() if how == "killed" else server.go_on()
        if how == "paused":
            store._valkey._timeout_s = LIMIT_S
            assert await store.seen(nonce())
            return
        # It is empty now.
        with pytest.raises(NotRememberedError):
            await store.seen(nonce())
        assert not await store.seen(nonce(made=NOON + dt.timedelta(seconds=30)))


async def test_f8_a_valkey_that_was_flushed_takes_nothing_signed_before_that(server: ValkeyServer) -> None:
    async with opened(in_valkey(server)) as store:
        await begun(store)
        await store.spend(nonce(), "req_1")
        server.command("FLUSHALL")
        store._clock.seconds = 10.0
        for asked in (store.seen(nonce()), store.spend(nonce("m" * 16), "req_2")):
            with pytest.raises(NotRememberedError) as caught:
                await asked
            assert caught.value.wait_s == 30.0
        assert not await store.seen(nonce("o" * 16, made=NOON + dt.timedelta(seconds=40)))


async def test_r_a_valkey_that_evicts_is_refused_at_the_start() -> None:
    with running(policy="allkeys-lru") as server:
        with pytest.raises(StorageError, match="noeviction"):
            async with opened(in_valkey(server)):
                pass
        server.kill()
        log = io.StringIO()
        async with opened(in_valkey(server), log) as store:
            assert "replay_store_away" in log.getvalue()
            server.start()
            # Found out when it is back: it is no store.
            with pytest.raises(StorageError, match="noeviction"):
                await store.seen(nonce())


async def test_a_valkey_forgets_by_itself(server: ValkeyServer) -> None:
    async with opened(in_valkey(server)) as store:
        await begun(store)
        await store.spend(nonce(), "req_1")
        ttl_ms = int(server.command("PTTL", f"tollhouse:nonce:k:{'n' * 16}")[1:])
        assert 350_000 < ttl_ms <= 360_000
        await store.forget(NOON)
        assert await store.count() == 0


async def test_the_house_s_valkey_is_used_if_no_other_is_named(server: ValkeyServer) -> None:
    settings = Settings(store="valkey", valkey_timeout_s=LIMIT_S)
    async with opened(settings, valkey=Valkey(url=server.url)) as store:
        assert isinstance(store, ValkeyNonces)
        await store.check()


async def test_a_valkey_without_a_place_is_a_mistake() -> None:
    with pytest.raises(StorageError, match="valkey_url"):
        async with opened(Settings(store="valkey")):
            pass
