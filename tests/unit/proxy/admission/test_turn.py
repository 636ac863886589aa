"""The wait in front of `concurrency`: in order, in time, and holding nothing else."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.exchange import Ending, Outcome
from proxy.policy.schema import ModelRules
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint, Usage

Build = Callable[..., Any]
WAITING = {"concurrency": 1, "max_wait_s": 30.0, "max_waiting": 2}


async def settle(house: Any, grant: Any) -> None:
    outcome = Outcome(200, Ending.COMPLETE, Usage(10, 1), "stop")
    await grant.settle(outcome, ended=house.clock.now(), duration_ms=1, ttft_ms=1)


async def step() -> None:
    """Let everybody run who can."""
    for _ in range(20):
        await asyncio.sleep(0)


def come(house: Any, **fields: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(house.admit(**fields))


async def test_who_comes_to_a_full_house_waits_and_is_let_in_when_one_leaves(build: Build) -> None:
    house = build(**WAITING)
    first = await house.admit()
    before = house.consumed()
    second = come(house)
    await step()
    assert not second.done()
    assert house.consumed() == before
    await settle(house, first)
    grant = await second
    assert house.meters.leases.running("k") == 1
    await settle(house, grant)
    assert len(house.meters.leases) == 0


async def test_those_who_wait_are_let_in_in_order_and_are_not_passed(build: Build) -> None:
    house = build(**WAITING)
    running = await house.admit()
    second, third = come(house), come(house)
    await step()
    await settle(house, running)
    # The lease is the second's already, though it has not run since: who comes now must not take it.
    last = come(house)
    await step()
    assert (second.done(), third.done(), last.done()) == (True, False, False)
    await settle(house, await second)
    await step()
    assert (third.done(), last.done()) == (True, False)
    await settle(house, await third)
    await last


async def test_a_question_does_not_pass_those_who_wait(build: Build) -> None:
    house = build(**WAITING)
    running = await house.admit()
    second = come(house)
    await step()
    await settle(house, running)
    with pytest.raises(ApiError) as caught:
        await house.ask()
    assert caught.value.code == "concurrency_limit_exceeded"
    await second


async def test_a_line_that_is_full_refuses_at_once(build: Build) -> None:
    house = build(**WAITING)
    await house.admit()
    waiting = [come(house) for _ in range(2)]
    await step()
    error = await house.refused()
    assert (error.status, error.code, error.rule) == (429, "concurrency_limit_exceeded", "concurrency")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("without", ["max_wait_s", "max_waiting"])
async def test_without_a_time_or_a_place_to_wait_nobody_waits(build: Build, without: str) -> None:
    house = build(**{**WAITING, without: 0})
    await house.admit()
    assert (await house.refused()).rule == "concurrency"


async def test_who_has_waited_long_enough_is_refused(build: Build) -> None:
    house = build(**{**WAITING, "max_wait_s": 0.001})
    running = await house.admit()
    error = await house.refused()
    assert (error.status, error.code, error.rule) == (429, "concurrency_limit_exceeded", "concurrency")
    assert house.meters.leases.waiting("k") == 0
    await settle(house, running)
    await house.admit()


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(build: Build) -> None:
    house = build(**WAITING)
    running = await house.admit()
    second, third = come(house), come(house)
    await step()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert second.cancelled()
    await settle(house, running)
    await settle(house, await third)
    assert len(house.meters.leases) == 0
    assert house.meters.leases.waiting("k") == 0


async def test_a_client_that_leaves_just_when_it_is_its_turn_passes_it_on(build: Build) -> None:
    house = build(**WAITING)
    running = await house.admit()
    second, third = come(house), come(house)
    await step()
    await settle(house, running)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert second.cancelled()
    await settle(house, await third)
    assert len(house.meters.leases) == 0


async def test_who_is_woken_looks_at_everything_again_and_passes_its_turn_on(build: Build) -> None:
    house = build(**WAITING, tokens_per_minute=60)
    running = await house.admit()
    greedy, modest = come(house, max_output_tokens=40), come(house)
    await step()
    # What is left of the minute's tokens when the first ends is too little for the second, and enough for the third.
    house.meters.tokens.commit("k", next(limit.rate for limit in rules(house).limits if limit.sized), 20)
    outcome = Outcome(200, Ending.COMPLETE, Usage(10, 10), "stop")
    await running.settle(outcome, ended=house.clock.now(), duration_ms=1, ttft_ms=1)
    with pytest.raises(ApiError) as caught:
        await greedy
    assert caught.value.code == "rate_limit_exceeded"
    await settle(house, await modest)
    assert len(house.meters.leases) == 0


def rules(house: Any) -> Any:
    return house.gate._rulebook.of(house.principal(), "m")


async def test_what_else_does_not_fit_is_not_waited_for(build: Build) -> None:
    house = build(**WAITING, requests_per_minute=1)
    await house.admit()
    assert (await house.refused()).rule == "requests_per_minute"


async def test_a_request_that_fails_after_its_turn_came_gives_it_back(build: Build) -> None:
    house = build(**WAITING, bound=None, max_context=100)
    house.exact = 200
    running = await house.admit(endpoint=Endpoint.COMPLETIONS, messages=3)
    failing, second = come(house), come(house, endpoint=Endpoint.COMPLETIONS, messages=3)
    await step()
    await settle(house, running)
    with pytest.raises(ApiError) as caught:
        await failing
    assert caught.value.code == "context_length_exceeded"
    await settle(house, await second)
    assert len(house.meters.leases) == 0


async def test_the_line_of_a_model_with_its_own_limit_is_its_own(build: Build) -> None:
    house = build(**WAITING, per_model={"m": ModelRules(concurrency=1)})
    running = await house.admit()
    second = come(house)
    await step()
    other = await house.admit(model="other")
    await settle(house, other)
    assert not second.done()
    await settle(house, running)
    await second


async def test_the_lines_of_keys_are_their_own(build: Build) -> None:
    house = build(**WAITING)
    await house.admit()
    waiting = come(house)
    await step()
    await house.admit(key_id="other")
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_key_that_may_wait_is_not_refused_before_it_causes_work(build: Build) -> None:
    house = build(**WAITING)
    await house.admit()
    await house.gate.check_limits(house.principal(), "m")


async def test_a_raised_limit_lets_in_who_waits_when_the_next_one_comes(build: Build) -> None:
    house = build(**WAITING)
    await house.admit()
    second = come(house)
    await step()
    raised = house.policy.tiers["t"].__class__(**{**fields(house.policy.tiers["t"]), "concurrency": 2})
    house.policy = house.policy.__class__(tiers={"t": raised}, revision="1" * 12)
    third = come(house)
    await step()
    assert (second.done(), third.done()) == (True, False)
    await settle(house, await second)
    await third


def fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}
