"""Rules in shadow: they decide and count as if they were in force, and nothing of it reaches the client."""

from collections.abc import Callable
from typing import Any

import pytest

from proxy.exchange import Ending, Outcome
from proxy.policy.schema import ModelRules, Overrides
from proxy.store.ledger import Standing
from proxy.verdict import Remark
from sidecar.wire.errors import unavailable
from sidecar.wire.internal import Usage

Build = Callable[..., Any]
RULES = ("requests_per_minute", "tokens_per_minute", "concurrency", "monthly_requests", "monthly_tokens")


def shadow(*rules: str) -> frozenset[Any]:
    return frozenset(rules)


async def settle(house: Any, grant: Any, prompt: int, completion: int) -> None:
    outcome = Outcome(200, Ending.COMPLETE, Usage(prompt, completion), "stop")
    await grant.settle(outcome, ended=house.clock.now(), duration_ms=1, ttft_ms=1)


@pytest.mark.parametrize("rule", RULES)
async def test_a_rule_in_shadow_says_what_it_would_refuse_and_lets_pass(build: Build, rule: str) -> None:
    house = build(**{rule: 20 if "tokens" in rule else 1}, shadow=shadow(rule))
    first, second = await house.admit(), await house.admit()
    assert first.remarks == ()
    assert second.remarks == (Remark(rule, "shadow"),)
    assert not any("ratelimit" in name for name in second.headers())
    assert house.used() == (2, 40)


async def test_a_rule_in_force_refuses_beside_one_in_shadow(build: Build) -> None:
    house = build(requests_per_minute=1, concurrency=2, shadow=shadow("requests_per_minute"))
    for _ in range(2):
        await house.admit()
    assert (await house.refused()).rule == "concurrency"


async def test_what_a_rule_in_shadow_would_refuse_does_not_count_for_it(build: Build) -> None:
    """As it would not if the rule were in force: ten more requests later the first one still frees a place in time."""
    house = build(
        requests_per_minute=1, tokens_per_minute=20, shadow=shadow("requests_per_minute", "tokens_per_minute")
    )
    for _ in range(10):
        await house.admit()
    house.clock.advance(60)
    assert (await house.admit()).remarks == ()
    assert len((await house.admit()).remarks) == 2


async def test_concurrency_in_shadow_counts_those_it_would_let_in(build: Build) -> None:
    house = build(concurrency=1, shadow=shadow("concurrency"))
    first, second = await house.admit(), await house.admit()
    assert [len(grant.remarks) for grant in (first, second)] == [0, 1]
    await settle(house, first, 10, 1)
    assert (await house.admit()).remarks == ()
    await settle(house, second, 10, 1)
    assert len(house.meters.leases) == 1


async def test_a_quota_in_shadow_still_moves_with_the_ledger(build: Build) -> None:
    house = build(monthly_tokens=50, shadow=shadow("monthly_tokens"))
    house.ledger.standings["k", "2026-11"] = Standing(100, 0, 1, 0)
    grant = await house.admit()
    assert grant.remarks == (Remark("monthly_tokens", "shadow"),)
    await settle(house, grant, 10, 3)
    assert house.used() == (2, 113)


async def test_tokens_that_were_not_used_go_back_to_a_rule_in_shadow(build: Build) -> None:
    house = build(tokens_per_minute=40, shadow=shadow("tokens_per_minute"))
    grant = await house.admit()
    await settle(house, grant, 10, 2)
    assert (await house.admit()).remarks == ()
    assert len((await house.admit()).remarks) == 1


async def test_a_rule_in_shadow_does_not_cut_the_answer_and_is_not_surprised_by_its_size(build: Build) -> None:
    """In force, output that nobody asked for is cut to the bucket; in shadow it is not, and yet that request fits."""
    house = build(tokens_per_minute=100, shadow=shadow("tokens_per_minute"))
    grant = await house.admit(max_output_tokens=None)
    assert (grant.estimate.output_tokens, grant.estimate.exact, grant.remarks) == (990, True, ())
    assert len((await house.admit()).remarks) == 1
    await settle(house, grant, 10, 20)
    assert (await house.admit()).remarks == ()
    in_force = await build(tokens_per_minute=100).admit(max_output_tokens=None)
    assert in_force.estimate.total == 100


async def test_a_size_that_cannot_be_counted_for_a_rule_in_shadow_is_its_bound(build: Build) -> None:
    house = build(tokens_per_minute=20, shadow=shadow("tokens_per_minute"))

    async def away(call: object) -> Any:
        raise unavailable("away", code="upstream_unavailable", retry_after_s=1)

    house.count = away
    grant = await house.admit(body=b"x" * 500)
    assert (grant.estimate.total, grant.remarks) == (510, (Remark("tokens_per_minute", "shadow"),))


async def test_a_void_request_leaves_no_trace_in_shadow(build: Build) -> None:
    house = build(**dict.fromkeys(RULES, 20), shadow=shadow(*RULES))
    before = house.consumed()
    async with await house.admit(), await house.admit(), await house.admit() as last:
        assert {remark.rule for remark in last.remarks} == {"tokens_per_minute", "monthly_tokens"}
    assert house.consumed()[1:] == before[1:]


async def test_a_models_and_a_keys_own_limits_are_in_shadow_with_their_rule(build: Build) -> None:
    rules = ("requests_per_minute", "concurrency")
    house = build(requests_per_minute=5, shadow=shadow(*rules), per_model={"m": ModelRules(requests_per_minute=1)})
    own = Overrides(concurrency=1)
    await house.admit(own=own)
    assert [remark.rule for remark in (await house.admit(own=own)).remarks] == list(rules)
    assert (await house.admit(key_id="other", model="n")).remarks == ()


async def test_a_question_is_let_pass_too(build: Build) -> None:
    house = build(requests_per_minute=1, concurrency=1, shadow=shadow("requests_per_minute", "concurrency"))
    first = await house.ask()
    with first as headers, await house.ask() as others:
        assert (first.remarks, headers, others) == ((), {}, {})
    again = await house.ask()
    with again:
        assert again.remarks == (Remark("requests_per_minute", "shadow"),)
    assert len(house.meters.leases) == 0
    await house.gate.check_limits(house.principal(), "m")
