"""Who is let in: every refusal by name, nothing consumed by it, and no overshoot however many come at once."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from proxy.exchange import Ending, Outcome
from proxy.policy.schema import Policy
from proxy.store.ledger import Standing
from proxy.store.posting import Entry
from sidecar.wire.errors import ApiError, unavailable
from sidecar.wire.internal import Endpoint, Usage

Build = Callable[..., Any]


async def settle(house: Any, grant: Any, prompt: int, completion: int) -> None:
    outcome = Outcome(200, Ending.COMPLETE, Usage(prompt, completion), "stop")
    await grant.settle(outcome, ended=house.clock.now(), duration_ms=1, ttft_ms=1)


async def test_what_fits_is_reserved_in_the_ledger(build: Build) -> None:
    house = build()
    grant = await house.admit(choices=2, stream=True)
    (entry,) = house.ledger.told
    assert entry == Entry(
        request_id="req_0",
        key_id="k",
        account_id="a",
        tier="t",
        period="2026-11",
        endpoint="/v1/chat/completions",
        model="m",
        upstream="local",
        stream=True,
        choices=2,
        priority=3,
        est_tokens=30,
        created=house.clock.now(),
        client_request_id="client-1",
        trace_id="1" * 32,
        asked_output_tokens=10,
        bound_prompt_tokens=10,
        max_context=1000,
        prompts=1,
    )
    assert grant.estimate.total == 30
    assert (grant.priority, grant.weight, grant.cache_scope) == (3, 1.0, "account")


# --- models and output ---


async def test_a_model_that_is_not_there_and_one_that_is_not_allowed_look_the_same(build: Build) -> None:
    house = build(models=frozenset({"other"}))
    not_in_tier = await house.refused()
    not_in_key = await build().refused(models=frozenset({"other"}))
    with pytest.raises(ApiError) as nowhere:
        await house.gate.admit(house.principal(), house.call(), house.arrival(), None, house.count)
    bodies = {error.body() for error in (not_in_tier, not_in_key, nowhere.value)}
    assert len(bodies) == 1
    assert (not_in_tier.status, not_in_tier.code, not_in_tier.param) == (404, "model_not_found", "model")


async def test_a_key_may_use_what_both_its_tier_and_it_itself_allow(build: Build) -> None:
    house = build(models=frozenset({"m", "n"}))
    await house.admit(models=frozenset({"m"}))
    assert house.gate.allows(house.principal(), "n")
    assert not house.gate.allows(house.principal(models=frozenset({"m"})), "n")
    assert not house.gate.allows(house.principal(models=frozenset({"x"})), "x")


async def test_a_tier_that_is_gone_is_the_operators_to_fix(build: Build) -> None:
    house = build()
    house.policy = Policy(tiers={}, revision="1" * 12)
    error = await house.refused()
    assert (error.status, error.code) == (403, "permission_denied")


async def test_more_output_than_the_tier_allows_is_refused_by_the_clients_own_name(build: Build) -> None:
    house = build(max_output_tokens=10)
    await house.admit(max_output_tokens=10)
    error = await house.refused(max_output_tokens=11, max_output_param="max_completion_tokens")
    assert (error.status, error.code, error.param) == (400, "integer_above_max_value", "max_completion_tokens")


# --- bound first, count when it matters ---


async def test_nothing_is_counted_while_the_bound_fits(build: Build) -> None:
    house = build(tokens_per_minute=20)
    grant = await house.admit()
    assert (house.counted, grant.estimate.total, grant.estimate.exact) == (0, 20, False)


@pytest.mark.parametrize("limit", ["tokens_per_minute", "monthly_tokens"])
async def test_a_bound_that_does_not_fit_is_counted(build: Build, limit: str) -> None:
    house = build(**{limit: 20})
    grant = await house.admit(body=b"x" * 500)
    assert (house.counted, grant.estimate.total, grant.estimate.exact) == (1, 20, True)


async def test_without_a_bound_everything_is_counted(build: Build) -> None:
    house = build(bound=None)
    grant = await house.admit()
    assert (house.counted, grant.estimate.total) == (1, 20)


async def test_a_chat_that_is_not_plain_is_counted(build: Build) -> None:
    house = build(tokens_per_minute=20)
    grant = await house.admit(plain=False)
    assert (house.counted, grant.estimate.total, grant.estimate.exact) == (1, 20, True)


async def test_a_bound_beyond_the_context_is_no_reason_to_refuse(build: Build) -> None:
    house = build(tokens_per_minute=500)
    grant = await house.admit(body=b"x" * 5000)
    assert (house.counted, grant.estimate.total) == (1, 20)


async def test_what_is_refused_whatever_its_size_is_not_counted(build: Build) -> None:
    house = build(bound=None, requests_per_minute=1)
    await house.admit()
    await house.refused()
    assert house.counted == 1


async def test_a_counted_prompt_that_fills_the_context_is_refused_by_name(build: Build) -> None:
    house = build(bound=None)
    house.exact = 1000
    chat = await house.refused()
    assert (chat.status, chat.code, chat.param) == (400, "context_length_exceeded", "messages")
    assert "maximum context length is 1000 tokens" in chat.message
    completion = await house.refused(endpoint=Endpoint.COMPLETIONS)
    assert completion.param == "prompt"
    response = await house.refused(endpoint=Endpoint.RESPONSES)
    assert response.param == "input"
    several = await house.admit(endpoint=Endpoint.COMPLETIONS, messages=3, choices=3)
    assert several.estimate.total == 1030


async def test_an_input_to_embed_may_fill_the_context(build: Build) -> None:
    house = build(bound=None)
    house.exact = 1000
    grant = await house.admit(endpoint=Endpoint.EMBEDDINGS, max_output_tokens=0)
    assert grant.estimate.total == 1000
    house.exact = 1001
    refused = await house.refused(endpoint=Endpoint.EMBEDDINGS, max_output_tokens=0)
    assert (refused.code, refused.param) == ("context_length_exceeded", "input")


async def test_a_counter_that_is_away_has_consumed_nothing(build: Build) -> None:
    house = build(bound=None)

    async def away(call: object) -> Any:
        raise unavailable("away", code="upstream_unavailable", retry_after_s=1)

    house.count = away
    error = await house.refused()
    assert (error.status, error.code) == (503, "upstream_unavailable")


# --- limits ---


async def test_too_many_requests_a_minute(build: Build) -> None:
    house = build(requests_per_minute=2)
    for _ in range(2):
        await house.admit()
    error = await house.refused()
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert "Limit 2, Used 2, Requested 1. Please try again in 30s." in error.message
    assert error.headers() == {
        "retry-after": "30",
        "retry-after-ms": "30000",
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "ratelimit-policy": '"requests";q=2;w=60',
        "ratelimit": '"requests";r=0;t=60',
    }
    house.clock.advance(error.retry_after_s or 0)
    await house.admit()


async def test_too_many_tokens_a_minute(build: Build) -> None:
    house = build(tokens_per_minute=60, requests_per_minute=100)
    for _ in range(3):
        await house.admit()
    error = await house.refused()
    assert (error.status, error.type, error.code) == (429, "tokens", "rate_limit_exceeded")
    assert "Limit 60, Used 60, Requested 20. Please try again in 20s." in error.message
    assert error.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert error.headers()["x-ratelimit-remaining-requests"] == "97"
    house.clock.advance(20)
    await house.admit()


async def test_equal_limits_on_requests_and_tokens_do_not_share_a_cell(build: Build) -> None:
    house = build(requests_per_minute=40, tokens_per_minute=40)
    await house.admit()
    headers = (await house.admit()).headers()
    assert headers["x-ratelimit-remaining-requests"] == "38"
    assert headers["x-ratelimit-remaining-tokens"] == "0"


async def test_more_than_a_minutes_tokens_is_not_to_be_tried_again(build: Build) -> None:
    house = build(tokens_per_minute=19)
    error = await house.refused()
    assert (error.status, error.type, error.code) == (429, "tokens", "rate_limit_exceeded")
    assert "Limit 19, Requested 20" in error.message
    assert error.headers()["x-should-retry"] == "false"
    assert "retry-after" not in error.headers()


async def test_a_request_that_asks_for_nothing_fits_the_minute_it_is_measured_for(build: Build) -> None:
    house = build(tokens_per_minute=100)
    grant = await house.admit(max_output_tokens=None)
    assert (grant.estimate.prompt_tokens, grant.estimate.output_tokens) == (10, 90)


async def test_too_many_at_once(build: Build) -> None:
    house = build(concurrency=2)
    grants = [await house.admit() for _ in range(2)]
    error = await house.refused()
    assert (error.status, error.type, error.code) == (429, "requests", "concurrency_limit_exceeded")
    await settle(house, grants[0], 10, 1)
    await house.admit()


async def test_a_spent_month_is_refused_until_the_next(build: Build) -> None:
    house = build(monthly_tokens=100)
    house.ledger.standings["k", "2026-11"] = Standing(settled_tokens=81, settled_requests=7)
    error = await house.refused()
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert "Limit 100, Used 81, Requested 20" in error.message
    assert error.headers()["x-should-retry"] == "false"
    until_december = dt.datetime(2026, 12, 1, tzinfo=dt.UTC) - house.clock.now()
    assert error.headers()["retry-after"] == str(int(until_december.total_seconds()))
    house.clock.advance(until_december.total_seconds())
    await house.admit()


async def test_a_month_of_requests_is_a_limit_of_its_own(build: Build) -> None:
    house = build(monthly_requests=2)
    for _ in range(2):
        await house.admit()
    error = await house.refused()
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
    assert "monthly requests" in error.message
    assert "Limit 2, Used 2, Requested 1" in error.message


async def test_keys_of_one_tier_do_not_share(build: Build) -> None:
    house = build(requests_per_minute=1, concurrency=1, monthly_requests=1)
    await house.admit(key_id="a")
    await house.admit(key_id="b")


async def test_without_limits_there_are_no_limit_headers_but_the_policy_s(build: Build) -> None:
    house = build()
    assert (await house.admit()).headers() == {"x-tollhouse-policy": "0" * 12}
    assert house.gate.headers(house.principal()) == {}


async def test_the_headers_of_a_key_can_be_asked_for_without_a_grant(build: Build) -> None:
    house = build(requests_per_minute=10)
    grant = await house.admit()
    assert house.gate.headers(house.principal()).items() <= grant.headers().items()
    assert grant.headers()["x-ratelimit-reset-requests"] == "6s"


# --- all or nothing, and all at once ---


@pytest.mark.parametrize(
    "spent",
    [
        {"requests_per_minute": 1},
        {"tokens_per_minute": 20},
        {"concurrency": 1},
        {"monthly_requests": 1},
        {"monthly_tokens": 20},
    ],
)
async def test_whichever_limit_refuses_nothing_is_taken_from_the_others(build: Build, spent: dict[str, int]) -> None:
    wide = {
        "requests_per_minute": 50,
        "tokens_per_minute": 5000,
        "concurrency": 50,
        "monthly_requests": 50,
        "monthly_tokens": 5000,
    }
    house = build(**(wide | spent))
    await house.admit()
    error = await house.refused()
    assert error.status == 429
    assert error.headers()["x-ratelimit-limit-requests"] == str((wide | spent)["requests_per_minute"])


@pytest.mark.parametrize(
    "limit",
    [
        {"monthly_tokens": 200},
        {"tokens_per_minute": 200},
        {"concurrency": 10},
        {"monthly_requests": 10},
        {"requests_per_minute": 10},
    ],
)
@pytest.mark.parametrize("size", [10, 500], ids=["bounded", "counted"])
async def test_fifty_at_once_against_a_limit_for_ten_are_ten(build: Build, limit: dict[str, int], size: int) -> None:
    house = build(**limit)
    results = await asyncio.gather(*(house.admit(body=b"x" * size) for _ in range(50)), return_exceptions=True)
    refusals = [result for result in results if isinstance(result, ApiError)]
    assert len(refusals) == 40
    assert all(refusal.status == 429 for refusal in refusals)
    requests, tokens = house.used()
    # Where the limit is on requests, a bound that is too great is never counted.
    assert requests == 10
    assert tokens == sum(entry.est_tokens for entry in house.ledger.told)
    assert tokens == 200 or "tokens" not in next(iter(limit))


# --- storage ---


async def test_a_ledger_that_is_away_lets_nobody_in(build: Build) -> None:
    house = build()
    house.ledger.away = True
    error = await house.refused()
    assert (error.status, error.code) == (503, "storage_unavailable")
    house.ledger.away = False
    await house.admit()


async def test_a_reservation_refused_on_the_spot_takes_nothing(build: Build) -> None:
    house = build(requests_per_minute=10)
    house.ledger.writes = "failed"
    with pytest.raises(ApiError) as caught:
        await house.admit()
    assert caught.value.code == "storage_unavailable"
    assert house.used() == (0, 0)
    assert len(house.meters.leases) == len(house.meters.requests) == 0


async def test_f10_the_month_is_the_one_at_admission(build: Build) -> None:
    house = build(monthly_tokens=100)
    house.clock.advance((dt.datetime(2026, 12, 1, tzinfo=dt.UTC) - house.clock.now()).total_seconds() - 1)
    grant = await house.admit()
    house.clock.advance(2)
    await house.admit()
    await settle(house, grant, 10, 5)
    assert [entry.period for entry in house.ledger.told[:2]] == ["2026-11", "2026-12"]
    assert house.used(period="2026-11") == (1, 15)
    assert house.used(period="2026-12") == (1, 20)


# --- what runs nothing ---


async def test_a_question_counts_for_the_minute_and_is_in_no_ledger_and_no_quota(build: Build) -> None:
    house = build(requests_per_minute=3, monthly_requests=1)
    for left in ("2", "1"):
        with await house.ask() as headers:
            assert headers["x-ratelimit-remaining-requests"] == left
    assert (house.ledger.told, len(house.meters.leases)) == ([], 0)
    await house.admit()
    assert house.used()[0] == 1
    error = await house.refused()
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    with pytest.raises(ApiError) as caught:
        await house.ask()
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert caught.value.headers()["x-ratelimit-remaining-requests"] == "0"
    house.clock.advance(20)
    with await house.ask(), pytest.raises(ApiError):
        await house.ask()


async def test_a_question_is_one_of_the_requests_at_once(build: Build) -> None:
    house = build(concurrency=1)
    with await house.ask():
        assert (await house.refused()).code == "concurrency_limit_exceeded"
        with pytest.raises(ApiError) as caught:
            await house.ask()
        assert caught.value.code == "concurrency_limit_exceeded"
        with await house.ask(key_id="other") as headers:
            assert headers == {}
    await house.admit()


async def test_a_question_that_is_refused_after_all_costs_nothing(build: Build) -> None:
    house = build(requests_per_minute=1)
    before = house.consumed()
    with pytest.raises(ZeroDivisionError), await house.ask():
        raise ZeroDivisionError
    assert house.consumed() == before


async def test_a_question_about_a_model_that_is_not_allowed_looks_as_if_there_were_none(build: Build) -> None:
    house = build(requests_per_minute=1)
    before = house.consumed()
    bodies = set()
    for models, gate in ((frozenset({"other"}), house), (None, build(models=frozenset({"other"})))):
        with pytest.raises(ApiError) as caught:
            await gate.ask(models=models)
        assert caught.value.status == 404
        bodies.add(caught.value.body())
    assert len(bodies) == 1
    assert house.consumed() == before
