"""Limits that several proxies hold to together, on a real Valkey: they do not multiply, and nobody waits for it."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from proxy.admission import shared
from proxy.admission.rate import Rate
from proxy.admission.shared import Scripts, SharedLimits, Wish
from proxy.store.valkey import open_valkey
from tests.fakes.valkey import ValkeyServer, running
from tests.fakes.waiting import LIMIT_S

# By the hour, so that time gives nothing back while a test runs.
TEN = Rate(10, 3600)


@pytest.fixture(scope="module")
def started() -> Iterator[ValkeyServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(started: ValkeyServer) -> ValkeyServer:
    started.command("FLUSHALL")
    return started


@pytest.fixture
async def open_proxy(server: ValkeyServer) -> AsyncIterator[Callable[[str], Any]]:
    async with AsyncExitStack() as stack:

        async def opened(
            name: str, told: Callable[[bool, int], None] = lambda _up, _known: None, timeout_s: float = LIMIT_S
        ) -> SharedLimits:
            valkey = await stack.enter_async_context(open_valkey(server.url, timeout_s=timeout_s))
            return await stack.enter_async_context(SharedLimits(valkey, name, told))

        yield opened


def wish(units: int, kind: str = "requests", rate: Rate = TEN) -> Wish:
    return Wish(kind, "key", rate, units)


async def eventually(holds: Callable[[], Any], limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110  another process decides
            await asyncio.sleep(0.01)


async def test_f8_limits_do_not_multiply_with_the_proxies(open_proxy: Any) -> None:
    one, two = await open_proxy("one"), await open_proxy("two")
    verdicts = [await (one, two)[n % 2].take([wish(1)], None, f"r{n}") for n in range(14)]
    assert [verdict.taken is not None for verdict in verdicts] == [True] * 10 + [False] * 4


async def test_a_refused_request_has_taken_nothing_of_any_limit(open_proxy: Any) -> None:
    proxy = await open_proxy("one")
    refused = await proxy.take([wish(1), wish(11, "tokens")], ("key", 5), "r")
    assert refused.taken is None
    assert refused.looks[1].retry_after_s is None
    verdict = await proxy.take([wish(10), wish(10, "tokens")], ("key", 1), "r")
    assert verdict.taken is not None
    assert verdict.concurrency.running == 0


async def test_a_refusal_tells_the_wait_that_is_true(server: ValkeyServer, open_proxy: Any) -> None:
    proxy = await open_proxy("one")

    def age(seconds: float) -> None:
        """As if the cell had been taken from so much earlier."""
        server.command("HINCRBY", shared._cell(wish(1)), "at", str(-math.ceil(seconds * 1_000_000)))

    assert (await proxy.take([wish(10)], None, "a")).taken
    look = (await proxy.take([wish(1)], None, "b")).looks[0]
    assert look.limit == 10
    assert 300 < look.retry_after_s <= 360
    age(look.retry_after_s - 60)
    look = (await proxy.take([wish(1)], None, "c")).looks[0]
    assert 0 < look.retry_after_s <= 60
    age(look.retry_after_s)
    assert (await proxy.take([wish(1)], None, "d")).taken


async def test_what_is_refunded_can_be_taken_again_and_not_twice(open_proxy: Any) -> None:
    proxy = await open_proxy("one")
    taken = (await proxy.take([wish(10)], None, "a")).taken
    assert (await proxy.take([wish(4)], None, "b")).taken is None
    proxy.give_back(taken.charges[0], 4)

    async def fits() -> bool:
        return (await proxy.take([wish(4)], None, "c")).taken is not None

    await eventually(fits)
    assert (await proxy.take([wish(1)], None, "d")).taken is None


async def test_leases_are_counted_over_all_proxies_and_given_back(open_proxy: Any) -> None:
    one, two = await open_proxy("one"), await open_proxy("two")
    first = (await one.take([], ("key", 2), "a")).taken
    assert (await two.take([], ("key", 2), "b")).taken
    assert (await two.take([], ("key", 2), "c")).taken is None
    one.release(first)
    one.release(first)

    async def fits() -> bool:
        return (await two.take([], ("key", 2), "d")).taken is not None

    await eventually(fits)
    assert (await two.take([], ("key", 2), "e")).taken is None


async def test_f1_the_leases_of_a_dead_proxy_come_back(open_proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = await open_proxy("dead"), await open_proxy("alive")
    assert (await dead.take([], ("key", 1), "a")).taken
    for task in dead._tasks:
        task.cancel()
    assert (await alive.take([], ("key", 1), "b")).taken is None
    monkeypatch.setattr(shared, "LEASE_S", 1)
    await dead._be_present()

    async def fits() -> bool:
        return (await alive.take([], ("key", 1), "c")).taken is not None

    await eventually(fits)


async def test_a_lease_is_renewed_as_long_as_its_request_runs(
    server: ValkeyServer, open_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RENEW_EVERY_S", 0.05)
    proxy = await open_proxy("one")
    assert (await proxy.take([], ("key", 1), "a")).taken

    def ends() -> float:
        _, score, _ = server.command("ZSCORE", shared._leases("key"), "a").split(b"\r\n")
        return float(score)

    begun = ends()

    async def is_renewed() -> bool:
        return ends() > begun

    await eventually(is_renewed)
    assert (await proxy.take([], ("key", 1), "b")).taken is None


class Counted:
    """Runs scripts on another. Mutable: `takes`, how often something was to be taken."""

    def __init__(self, scripts: Scripts) -> None:
        self.takes = 0
        self._scripts = scripts

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> Any:
        self.takes += script == shared.TAKE
        return await self._scripts.run(script, keys, arguments)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_f8_nobody_waits_for_a_valkey_that_is_away_and_it_comes_back(
    server: ValkeyServer, open_proxy: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PROBE_EVERY_S", 0.1)
    # That it hangs is known by the time alone.
    limit_s = 1.0 if fault == "pause" else LIMIT_S
    one = await open_proxy("one", timeout_s=limit_s)
    await open_proxy("two", timeout_s=limit_s)

    async def both_known() -> bool:
        await one._be_present()
        return one.share is None and one._known == 2

    await eventually(both_known)
    one._valkey = counted = Counted(one._valkey)
    getattr(server, fault)()
    try:
        for n in range(20):
            assert await one.take([wish(1)], ("key", 2), f"r{n}") is None
        # Each proxy has its half of every limit, and only the first one waited.
        assert one.share == 2
        assert counted.takes <= 1
    finally:
        server.start() if fault == "kill" else server.go_on()

    async def back() -> bool:
        verdict = await one.take([wish(1)], ("key", 2), "again")
        return verdict is not None and verdict.taken is not None and one.share is None

    await eventually(back)


async def test_how_many_proxies_there_are_is_told_as_it_changes(
    open_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[bool, int]] = []
    one = await open_proxy("one", lambda up, known: told.append((up, known)))
    two = await open_proxy("two")
    await one._be_present()
    await one._be_present()
    assert told == [(True, 1), (True, 2)]
    for task in two._tasks:
        task.cancel()
    monkeypatch.setattr(shared, "LEASE_S", 1)
    await two._be_present()

    async def alone() -> bool:
        await one._be_present()
        return told[-1] == (True, 1)

    await eventually(alone)


async def test_f8_a_flushed_valkey_starts_from_full(server: ValkeyServer, open_proxy: Any) -> None:
    proxy = await open_proxy("one")
    assert (await proxy.take([wish(10)], ("key", 1), "a")).taken
    server.command("FLUSHALL")
    server.command("SCRIPT", "FLUSH")
    assert (await proxy.take([wish(10)], ("key", 1), "b")).taken
