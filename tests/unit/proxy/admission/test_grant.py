"""A grant ends once, whatever happens; what was not used is given back, what was produced never is."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from proxy.asked import UpstreamRefusedError
from proxy.exchange import Ending, Outcome
from proxy.store.database import StorageError
from proxy.store.ledger import Standing
from proxy.store.posting import Settled, Voided
from proxy.store.standing import QuotaExceededError
from proxy.verdict import RefusedError
from sidecar.wire.errors import ApiError, unavailable
from sidecar.wire.internal import Usage

Build = Callable[..., Any]
LIMITS = {"requests_per_minute": 10, "tokens_per_minute": 100, "concurrency": 2, "monthly_tokens": 1000}
ENDED = dt.datetime(2026, 11, 25, 12, 0, 5, tzinfo=dt.UTC)
COMPLETE = Outcome(200, Ending.COMPLETE, Usage(10, 3, cached_tokens=2, finish_reason="stop"), "stop")


async def settle(grant: Any, outcome: Outcome = COMPLETE, **more: Any) -> None:
    await grant.settle(outcome, ended=ENDED, duration_ms=5000, ttft_ms=70, **more)


def left(house: Any) -> tuple[int, int]:
    """Requests and tokens left in this minute."""
    headers = house.gate.headers(house.principal())
    return int(headers["x-ratelimit-remaining-requests"]), int(headers["x-ratelimit-remaining-tokens"])


# --- settle ---


async def test_a_settled_request_costs_what_it_used(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit() as grant:
        assert (house.used(), left(house), house.meters.leases.running("k")) == ((1, 20), (9, 80), 1)
        await settle(grant)
        assert grant.ended
    assert (house.used(), left(house), house.meters.leases.running("k")) == ((1, 13), (9, 87), 0)
    assert house.ledger.told[1:] == [
        Settled(
            request_id="req_0",
            prompt_tokens=10,
            completion_tokens=3,
            cached_tokens=2,
            ended=ENDED,
            duration_ms=5000,
            ttft_ms=70,
            status=200,
            reason="complete",
            finish_reason="stop",
        )
    ]


async def test_only_the_first_settlement_counts(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit() as grant:
        await settle(grant)
        await settle(grant, Outcome(200, Ending.CLIENT_GONE, Usage(10, 9), ""))
    assert house.used() == (1, 13)
    assert len(house.ledger.told) == 2


async def test_a_request_that_used_more_than_was_set_aside_owes_it_all(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit() as grant:
        await settle(grant, Outcome(200, Ending.COMPLETE, Usage(10, 50), "stop"))
    assert (house.used(), left(house)) == ((1, 60), (9, 40))


async def test_a_forced_settlement_says_so(build: Build) -> None:
    house = build()
    async with await house.admit() as grant:
        await settle(
            grant, Outcome(200, Ending.UPSTREAM_FAILED, Usage(10, 10), "", "upstream_unavailable"), forced=True
        )
    settled = house.ledger.told[1]
    assert (settled.forced, settled.reason, settled.error_code) == (True, "upstream_failed", "upstream_unavailable")


async def test_a_settlement_without_usage_owes_nothing_and_says_why(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit() as grant:
        await settle(grant, Outcome(499, Ending.CLIENT_GONE, None, ""))
    assert (house.used(), left(house), len(house.meters.leases)) == ((0, 0), (10, 100), 0)
    assert house.ledger.told[1:] == [Voided("req_0", ENDED, 5000, 499, "client_gone")]


async def test_the_meters_move_before_the_settlement_is_on_disk(build: Build) -> None:
    house = build(**LIMITS)
    grant = await house.admit()
    house.ledger.writes = "stuck"
    written = grant.settle(COMPLETE, ended=ENDED, duration_ms=1, ttft_ms=1)
    assert not written.done()
    assert (house.used(), len(house.meters.leases)) == ((1, 13), 0)


# --- durable ---


async def test_a_settlement_that_is_sooner_than_the_reservation_moves_the_meters_with_it(build: Build) -> None:
    house = build(**LIMITS)
    house.ledger.writes = "stuck"
    grant = await house.admit()
    reserved = house.ledger.last
    house.ledger.writes = "done"
    await settle(grant)
    assert (house.used(), house.meters.leases.running("k")) == ((1, 20), 1)
    reserved.set_result(None)
    await asyncio.sleep(0)
    assert (house.used(), left(house), house.meters.leases.running("k")) == ((1, 13), (9, 87), 0)


async def test_a_settlement_of_a_reservation_that_is_refused_after_it_costs_nothing(build: Build) -> None:
    house = build(**LIMITS)
    house.ledger.writes = "stuck"
    grant = await house.admit()
    reserved = house.ledger.last
    house.ledger.writes = "done"
    await settle(grant)
    reserved.set_exception(StorageError("full"))
    await asyncio.sleep(0)
    assert (house.used(), left(house), house.meters.leases.running("k")) == ((0, 0), (10, 100), 0)
    with pytest.raises(ApiError):
        await grant.durable()


async def test_whoever_waits_for_the_disk_may_wait_for_something_else_too(build: Build) -> None:
    house = build(**LIMITS)
    house.ledger.writes = "stuck"
    grant = await house.admit()
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    answer.set_result(b"")
    await grant.durable(unless=answer)
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    with pytest.raises(ApiError):
        await grant.durable(unless=never)


async def test_a_quota_that_others_used_up_meanwhile_is_a_429_and_costs_nothing(build: Build) -> None:
    house = build(**LIMITS)
    house.ledger.writes = "stuck"

    async def let_in() -> None:
        async with await house.admit() as grant:
            house.ledger.standings["k", "2026-11"] = Standing(settled_tokens=990)
            house.ledger.last.set_exception(QuotaExceededError("monthly_tokens", 1000, 990, 20))
            await grant.durable()

    with pytest.raises(RefusedError, match=r"Limit 1000, Used 990, Requested 20\. It is renewed at") as refused:
        await let_in()
    error = refused.value
    assert (error.status, error.code, error.rule) == (429, "insufficient_quota", "monthly_tokens")
    assert left(house) == (10, 100)
    # And what is known here is read again.
    house.ledger.writes = "done"
    with pytest.raises(ApiError, match="Used 990"):
        await house.admit()


# --- counted ---


async def test_a_counted_prompt_shrinks_what_is_set_aside(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit(body=b"x" * 60) as grant:
        assert grant.estimate.total == 70
        grant.counted(25)
        assert (grant.estimate.total, grant.estimate.exact) == (35, True)
        assert (house.used(), left(house)) == ((1, 35), (9, 65))
        assert house.ledger.told[1:] == [("req_0", 35)]
        await settle(grant, Outcome(200, Ending.COMPLETE, Usage(25, 1), "stop"))
    assert (house.used(), left(house)) == ((1, 26), (9, 74))


async def test_a_count_beyond_the_bound_grows_nothing(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit() as grant:
        grant.counted(500)
        assert (grant.estimate.total, house.used()) == (20, (1, 20))
        await settle(grant)
    assert len(house.ledger.told) == 2


async def test_a_count_after_the_end_changes_nothing(build: Build) -> None:
    house = build(**LIMITS)
    async with await house.admit() as grant:
        await settle(grant)
        grant.counted(1)
    assert house.used() == (1, 13)


# --- leaving without having settled ---


@pytest.mark.parametrize(
    ("raised", "status", "reason", "code"),
    [
        (UpstreamRefusedError(400, "no", code="invalid_value"), 400, "upstream_refused", "invalid_value"),
        (unavailable("gone", code="model_loading", retry_after_s=1), 503, "upstream_failed", "model_loading"),
        (asyncio.CancelledError(), 499, "client_gone", None),
        (RuntimeError("a bug"), 500, "internal", None),
    ],
)
async def test_whoever_leaves_without_settling_ran_nothing(
    build: Build, raised: BaseException, status: int, reason: str, code: str | None
) -> None:
    house = build(**LIMITS)

    async def run() -> None:
        async with await house.admit(body=b"x" * 60) as grant:
            grant.counted(25)
            house.clock.advance(0.25)
            raise raised

    with pytest.raises(type(raised)):
        await run()
    voided = house.ledger.told[-1]
    assert voided == Voided("req_0", house.clock.now(), 250, status, reason, code)
    assert (house.used(), left(house), len(house.meters.leases)) == ((0, 0), (10, 100), 0)


async def test_a_cancelled_task_gives_everything_back(build: Build) -> None:
    house = build(**LIMITS)
    entered = asyncio.Event()

    async def run() -> None:
        async with await house.admit():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await entered.wait()
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (house.used(), left(house), len(house.meters.leases)) == ((0, 0), (10, 100), 0)
    assert isinstance(house.ledger.told[-1], Voided)


async def test_leaving_after_a_settlement_adds_nothing(build: Build) -> None:
    house = build(**LIMITS)

    async def run() -> None:
        async with await house.admit() as grant:
            await settle(grant)
            raise RuntimeError("after the answer")

    with pytest.raises(RuntimeError):
        await run()
    assert (house.used(), left(house)) == ((1, 13), (9, 87))
    assert [type(told) for told in house.ledger.told[1:]] == [Settled]


# --- durable ---


async def test_it_is_durable_once_the_ledger_says_so(build: Build) -> None:
    house = build()
    async with await house.admit() as grant:
        await grant.durable()
        await settle(grant)


async def test_a_reservation_that_fails_or_takes_too_long_is_a_503(build: Build) -> None:
    house = build()
    house.ledger.writes = "stuck"
    grant = await house.admit()
    with pytest.raises(ApiError) as slow:
        await grant.durable()
    assert (slow.value.status, slow.value.code) == (503, "storage_unavailable")
    assert slow.value.headers()["retry-after"] == "2"
    grant._reserved.set_exception(OSError("full"))
    with pytest.raises(ApiError) as failed:
        await grant.durable()
    assert (failed.value.status, failed.value.code) == (503, "storage_unavailable")


async def test_waiting_for_the_disk_can_be_cancelled_without_losing_the_reservation(build: Build) -> None:
    house = build()
    house.ledger.writes = "stuck"
    grant = await house.admit()
    waiting = asyncio.create_task(grant.durable())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not grant._reserved.cancelled()
