"""Whose limits hold: the tier's, with the key's own in their place, with the model's in the place of those."""

from collections.abc import Callable
from typing import Any

import pytest

from proxy.admission.rules import Rulebook
from proxy.exchange import Ending, Outcome
from proxy.policy.schema import ModelRules, Overrides, Policy
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Usage

Build = Callable[..., Any]


async def settle(house: Any, grant: Any, prompt: int, completion: int) -> None:
    outcome = Outcome(200, Ending.COMPLETE, Usage(prompt, completion), "stop")
    await grant.settle(outcome, ended=house.clock.now(), duration_ms=1, ttft_ms=1)


# --- a key's own ---


async def test_a_keys_own_limits_hold_in_the_place_of_its_tiers(build: Build) -> None:
    house = build(requests_per_minute=1, concurrency=1, monthly_requests=1)
    own = Overrides(requests_per_minute=3, concurrency="unlimited", monthly_requests=2)
    for _ in range(2):
        await house.admit(own=own)
    error = await house.refused(own=own)
    assert (error.rule, error.code) == ("monthly_requests", "insufficient_quota")
    assert "monthly requests for this API key: Limit 2" in error.message
    assert error.headers()["x-ratelimit-limit-requests"] == "3"


async def test_a_limit_that_is_the_tiers_is_named_so_beside_the_keys_own(build: Build) -> None:
    house = build(requests_per_minute=1, tokens_per_minute=1000)
    own = Overrides(tokens_per_minute=20)
    error = await house.refused(own=own, max_output_tokens=50)
    assert error.rule == "tokens_per_minute"
    assert "tokens per minute for this API key: Limit 20" in error.message
    await house.admit(own=own)
    error = await house.refused(own=own)
    assert error.rule == "requests_per_minute"
    assert "requests per minute in the tier 't'" in error.message


async def test_a_keys_own_limit_on_output_is_named_so(build: Build) -> None:
    house = build(max_output_tokens=100, default_output_tokens=5)
    own = Overrides(max_output_tokens=8, default_output_tokens=7)
    error = await house.refused(own=own, max_output_tokens=9)
    assert (error.rule, error.code) == ("max_output_tokens", "integer_above_max_value")
    assert error.message == "'max_tokens' must be at most 8 for this API key."
    grant = await house.admit(own=own, max_output_tokens=None)
    assert grant.estimate.output_tokens == 7


# --- a model's ---


async def test_a_models_limits_are_counted_apart_from_the_other_models(build: Build) -> None:
    house = build(requests_per_minute=2, per_model={"m": ModelRules(requests_per_minute=3)})
    for _ in range(3):
        await house.admit()
    error = await house.refused()
    assert error.rule == "requests_per_minute"
    assert "requests per minute for the model 'm' in the tier 't': Limit 3, Used 3" in error.message
    for _ in range(2):
        await house.admit(model="other")
    error = await house.refused(model="other")
    assert "requests per minute in the tier 't': Limit 2, Used 2" in error.message


async def test_equal_limits_of_a_model_and_its_tier_do_not_share_a_cell(build: Build) -> None:
    house = build(requests_per_minute=2, per_model={"m": ModelRules(requests_per_minute=2)})
    for model in ("m", "other") * 2:
        await house.admit(model=model)


async def test_what_a_model_has_no_limit_of_is_counted_with_the_others(build: Build) -> None:
    house = build(requests_per_minute=2, tokens_per_minute=100, per_model={"m": ModelRules(tokens_per_minute=50)})
    await house.admit()
    await house.admit(model="other")
    error = await house.refused()
    assert error.rule == "requests_per_minute"
    assert "in the tier 't'" in error.message


async def test_the_headers_of_a_call_are_its_models(build: Build) -> None:
    house = build(requests_per_minute=9, per_model={"m": ModelRules(requests_per_minute=3)})
    grant = await house.admit()
    assert grant.headers()["x-ratelimit-limit-requests"] == "3"
    assert grant.headers()["x-ratelimit-remaining-requests"] == "2"
    other = await house.admit(model="other")
    assert other.headers()["x-ratelimit-remaining-requests"] == "8"
    with await house.ask() as headers:
        assert headers["x-ratelimit-remaining-requests"] == "1"


async def test_a_keys_own_limits_do_not_lift_a_models(build: Build) -> None:
    house = build(requests_per_minute=1, per_model={"m": ModelRules(requests_per_minute=2)})
    own = Overrides(requests_per_minute=100)
    for _ in range(2):
        await house.admit(own=own)
    error = await house.refused(own=own)
    assert "for the model 'm'" in error.message
    await house.admit(own=own, model="other")


async def test_a_models_requests_at_once_are_its_own(build: Build) -> None:
    house = build(concurrency=1, per_model={"m": ModelRules(concurrency=2)})
    first = await house.admit()
    await house.admit()
    error = await house.refused()
    assert "Too many requests at once for the model 'm' in the tier 't': Limit 2, Used 2" in error.message
    await house.admit(model="other")
    error = await house.refused(model="other")
    assert "at once in the tier 't': Limit 1, Used 1" in error.message
    await settle(house, first, 10, 1)
    await house.admit()
    assert len(house.meters.leases) == 3


async def test_a_models_tokens_are_given_back_to_its_own_cell(build: Build) -> None:
    house = build(tokens_per_minute=100, per_model={"m": ModelRules(tokens_per_minute=40)})
    grant = await house.admit()
    await settle(house, grant, 10, 2)
    assert grant.headers()["x-ratelimit-remaining-tokens"] == "28"
    # A foreign upstream that went over owes it to the same cell.
    grant = await house.admit()
    await settle(house, grant, 10, 15)
    assert grant.headers()["x-ratelimit-remaining-tokens"] == "3"
    assert (await house.admit(model="other")).headers()["x-ratelimit-remaining-tokens"] == "80"


async def test_a_models_limits_on_output_are_its_own(build: Build) -> None:
    rules = ModelRules(max_output_tokens=20, default_output_tokens=15)
    house = build(max_output_tokens=10, default_output_tokens=5, per_model={"m": rules})
    assert (await house.admit(max_output_tokens=None)).estimate.output_tokens == 15
    await house.admit(max_output_tokens=20)
    error = await house.refused(max_output_tokens=21)
    assert error.message == "'max_tokens' must be at most 20 for the model 'm' in the tier 't'."
    assert (await house.admit(model="other", max_output_tokens=None)).estimate.output_tokens == 5


async def test_a_model_without_a_limit_in_a_limited_tier(build: Build) -> None:
    house = build(requests_per_minute=1, per_model={"m": ModelRules(requests_per_minute="unlimited")})
    for _ in range(5):
        grant = await house.admit()
    assert not any(name.startswith(("x-ratelimit", "ratelimit")) for name in grant.headers())
    await house.admit(model="other")
    assert (await house.refused(model="other")).rule == "requests_per_minute"


# --- compiled once ---


def test_rules_are_compiled_once_and_anew_with_a_new_policy(build: Build) -> None:
    house = build(requests_per_minute=5, per_model={"m": ModelRules(concurrency=1)})
    book = Rulebook(lambda: house.policy)
    plain = book.of(house.principal(), "x")
    assert book.of(house.principal(key_id="another"), "y") is plain
    assert book.of(house.principal(), None) is plain
    assert book.of(house.principal(), "m") is not plain
    assert book.of(house.principal(own=Overrides(concurrency=9)), "x") is not plain
    house.policy = Policy(tiers=house.policy.tiers, revision="1" * 12)
    assert book.of(house.principal(), "x") is not plain
    house.policy = Policy(tiers={}, revision="2" * 12)
    with pytest.raises(ApiError) as caught:
        book.of(house.principal(), "x")
    assert caught.value.status == 403


def test_names_that_clients_make_up_fill_no_book(build: Build) -> None:
    house = build(per_model={"m": ModelRules(concurrency=1)})
    book = Rulebook(lambda: house.policy)
    for number in range(100):
        book.of(house.principal(), f"made up {number}")
    book.of(house.principal(), "m")
    assert len(book._compiled) == 2
