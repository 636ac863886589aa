"""Two proxies on one Valkey hold to one minute and to one number at once, and each to its share while it is away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.admission import shared
from proxy.admission.fleet import Shown, Together
from proxy.admission.gate import Admission
from proxy.admission.shared import SharedLimits
from proxy.store.valkey import open_valkey
from sidecar.wire.errors import ApiError
from tests.fakes.valkey import ValkeyServer, running
from tests.fakes.waiting import LIMIT_S


@pytest.fixture(scope="module")
def started() -> Iterator[ValkeyServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(started: ValkeyServer) -> ValkeyServer:
    started.command("FLUSHALL")
    return started


@dataclass
class Two:
    """Two gatehouses, and what each counts elsewhere."""

    houses: list[Any]
    limits: list[SharedLimits]

    async def let_in(self, number: int, **fields: Any) -> list[Any]:
        """As many of so many requests as are let in, by turns at one house and the other."""
        granted = []
        for turn in range(number):
            with contextlib.suppress(ApiError):
                granted.append(await self.houses[turn % 2].admit(**fields))
        return granted


@pytest.fixture
async def open_two(server: ValkeyServer, build: Callable[..., Any]) -> AsyncIterator[Callable[..., Awaitable[Two]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def opened(timeout_s: float = LIMIT_S, **tier: Any) -> Two:
            houses, limits = [], []
            for name in ("one", "two"):
                valkey = await stack.enter_async_context(open_valkey(server.url, timeout_s=timeout_s))
                counted = await stack.enter_async_context(SharedLimits(valkey, name, lambda _up, _known: None))
                house = build(**tier)
                house.name = name
                fleet = Together(counted, Shown(house.meters.requests, house.meters.tokens))
                house.gate = Admission(
                    lambda house=house: house.policy,
                    house.meters,
                    house.ledger,
                    house.clock,
                    storage_s=0.01,
                    fleet=fleet,
                )
                houses.append(house)
                limits.append(counted)
            for counted in limits:
                await counted._be_present()
            return Two(houses, limits)

        yield opened


async def eventually(holds: Callable[[], Awaitable[Any]], limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110  another process decides
            await asyncio.sleep(0.01)


async def test_f8_ten_a_minute_are_ten_over_both(open_two: Any) -> None:
    two = await open_two(requests_per_minute=10)
    assert len(await two.let_in(20)) == 10


async def test_tokens_of_a_minute_are_shared_and_what_was_not_used_comes_back(open_two: Any) -> None:
    two = await open_two(tokens_per_minute=100)
    # Twenty each by their bytes, prompt and output.
    granted = await two.let_in(8)
    assert len(granted) == 5
    async with granted[0]:
        pass

    async def fits() -> bool:
        return bool(await two.let_in(1))

    await eventually(fits)


async def test_a_bound_that_is_too_much_is_counted_exactly_before_it_is_refused(open_two: Any) -> None:
    two = await open_two(tokens_per_minute=100)
    house = two.houses[0]
    house.exact = 5
    assert len(await two.let_in(1, body=b"x" * 90)) == 1
    assert len(await two.let_in(1, body=b"x" * 90)) == 0 or house.counted
    assert house.counted >= 1


async def test_requests_at_once_are_counted_over_both(open_two: Any) -> None:
    two = await open_two(concurrency=2)
    granted = await two.let_in(5)
    assert len(granted) == 2
    with pytest.raises(ApiError) as refused:
        await two.houses[1].admit()
    assert refused.value.code == "concurrency_limit_exceeded"
    async with granted[0]:
        pass

    async def fits() -> bool:
        return bool(await two.let_in(1))

    await eventually(fits)


async def test_a_refusal_and_the_headers_tell_what_both_have_used(open_two: Any) -> None:
    two = await open_two(requests_per_minute=4)
    await two.let_in(4)
    with pytest.raises(ApiError) as refused:
        await two.houses[0].admit()
    error = refused.value
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert "Limit 4, Used 4, Requested 1" in error.message
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 15
    assert error.extra_headers["x-ratelimit-remaining-requests"] == "0"


async def test_who_is_refused_by_a_quota_has_taken_nothing_of_the_minute(open_two: Any) -> None:
    two = await open_two(requests_per_minute=2, monthly_requests=1)
    assert len(await two.let_in(1)) == 1
    for _ in range(5):
        with pytest.raises(ApiError) as refused:
            await two.houses[0].admit()
        assert refused.value.code == "insufficient_quota"

    async def fits() -> bool:
        return bool(await two.houses[1].admit())

    await eventually(fits)


async def test_a_question_is_one_of_the_minute(open_two: Any) -> None:
    two = await open_two(requests_per_minute=3)
    for house in (*two.houses, two.houses[0]):
        with await house.ask():
            pass
    with pytest.raises(ApiError, match="requests per minute"):
        await two.houses[1].ask()


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_f8_while_valkey_is_away_each_goes_by_its_half(
    server: ValkeyServer, open_two: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PROBE_EVERY_S", 0.1)
    # That it hangs is known by the time alone.
    two = await open_two(1.0 if fault == "pause" else LIMIT_S, requests_per_minute=10, concurrency=4)

    async def both_known() -> bool:
        for limits in two.limits:
            await limits._be_present()
        return all(limits.share is None and limits._known == 2 for limits in two.limits)

    await eventually(both_known)
    getattr(server, fault)()
    try:
        granted = await two.let_in(8)
        assert len(granted) == 4
        for grant in granted:
            async with grant:
                pass
    finally:
        server.start() if fault == "kill" else server.go_on()

    async def back() -> bool:
        return all(limits.share is None for limits in two.limits)

    await eventually(back)

    async def four_at_once() -> bool:
        # What a Valkey took that was only slow is given back soon after.
        granted = await two.let_in(6)
        for grant in granted:
            async with grant:
                pass
        return len(granted) == 4

    await eventually(four_at_once)


async def test_rules_in_shadow_are_tried_by_each_for_itself(open_two: Any) -> None:
    two = await open_two(requests_per_minute=1, shadow=frozenset({"requests_per_minute"}))
    granted = await two.let_in(4)
    assert [bool(grant.remarks) for grant in granted] == [False, False, True, True]
