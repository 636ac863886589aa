"""What is said of a key and a request before it comes; and that saying it takes nothing."""

from collections.abc import Callable
from typing import Any

from proxy.admission.explain import Cost, EffectiveRule, Explain, Explained, Knowledge
from proxy.policy.schema import ModelRules, Overrides
from sidecar.wire.internal import Count

Build = Callable[..., Any]


def desk(house: Any, *, counts: bool = True, served: bool = True) -> Explain:
    async def count(call: Any) -> Count:
        house.counted += 1
        return Count(house.exact, house.model.max_context)

    def no_body(_endpoint: Any, _body: bytes) -> Any:
        raise NotImplementedError

    find = {house.model.id: house.model}.get if served else {}.get
    return Explain(lambda: house.policy, house.meters, house.clock, Knowledge(find, count if counts else None, no_body))


async def explained(house: Any, *, principal: Any = None, call: Any = None, **options: Any) -> Explained:
    """And it has taken nothing."""
    who = house.principal() if principal is None else principal
    before = house.consumed()
    found = await desk(house, **options).explain(who, house.model.id, call)
    assert house.consumed() == before
    return found


def rules(found: Explained) -> dict[str, EffectiveRule]:
    return {rule.rule: rule for rule in found.rules}


async def test_what_is_used_and_what_would_fit_is_as_the_gate_has_it(build: Build) -> None:
    house = build(requests_per_minute=2, tokens_per_minute=50, concurrency=3, monthly_tokens=100)
    await house.admit()
    found = await explained(house, call=house.call())
    assert found.cost == Cost(10, 10, 1, 20, exact=False)
    assert [(said.rule, said.used, said.requested, said.limit, said.verdict) for said in found.says] == [
        ("requests_per_minute", 1, 1, 2, "allowed"),
        ("tokens_per_minute", 20, 20, 50, "allowed"),
        ("concurrency", 1, 1, 3, "allowed"),
        ("monthly_tokens", 20, 20, 100, "allowed"),
    ]
    assert (found.verdict, found.refused_by, found.remarks) == ("allowed", None, [])
    await house.admit()
    found = await explained(house, call=house.call())
    assert (found.verdict, found.refused_by) == ("refused", "requests_per_minute")
    assert found.says[0].retry_after_s == 30.0
    refused = await house.refused()
    assert refused.rule == found.refused_by


async def test_a_prompt_that_might_fill_the_context_window_is_counted(build: Build) -> None:
    house = build()
    house.exact = house.model.max_context
    found = await explained(house, call=house.call(body=b"x" * house.model.max_context))
    assert (house.counted, found.cost and found.cost.prompt_tokens) == (1, house.model.max_context)
    assert "leaves no room" in found.remarks[0]


async def test_what_does_not_fit_by_its_bytes_is_counted(build: Build) -> None:
    house = build(tokens_per_minute=30)
    found = await explained(house, call=house.call(body=b"x" * 100))
    assert found.cost == Cost(10, 10, 1, 20, exact=True)
    assert (house.counted, found.verdict) == (1, "allowed")


async def test_what_could_never_fit_has_no_time(build: Build) -> None:
    house = build(tokens_per_minute=15, monthly_tokens=18)
    found = await explained(house, call=house.call())
    assert [(said.verdict, said.retry_after_s) for said in found.says] == [("refused", None), ("refused", None)]


async def test_a_month_that_is_used_up_comes_again(build: Build) -> None:
    house = build(monthly_requests=1)
    await house.admit()
    (said,) = (await explained(house)).says
    assert (said.rule, said.verdict, said.used) == ("monthly_requests", "refused", 1)
    # From noon of the 25th to the first.
    assert said.retry_after_s == 5.5 * 86_400


async def test_without_a_request_the_least_that_one_takes_is_judged(build: Build) -> None:
    house = build(tokens_per_minute=15, requests_per_minute=1)
    found = await explained(house)
    assert found.cost is None
    assert [(said.rule, said.requested, said.verdict) for said in found.says] == [
        ("requests_per_minute", 1, "allowed"),
        ("tokens_per_minute", 1, "allowed"),
    ]


async def test_each_rule_says_whose_it_is(build: Build) -> None:
    house = build(
        requests_per_minute=5,
        tokens_per_minute=500,
        account_monthly_tokens=10_000,
        per_model={"m": ModelRules(tokens_per_minute=50), "n": ModelRules(concurrency=1)},
    )
    places = {"requests_per_minute": "a.yaml:4:5", "per_model.m.tokens_per_minute": "a.yaml:20:9"}
    house.policy = type(house.policy)(tiers=house.policy.tiers, revision="r", places={"t": places})
    who = house.principal()
    own = type(who)("a", "k", "t", None, limits=Overrides(concurrency=2), account_limits=Overrides(monthly_tokens=900))
    found = rules(await explained(house, principal=own))
    assert found["requests_per_minute"] == EffectiveRule("requests_per_minute", 5, "tier", "a.yaml:4:5")
    assert found["tokens_per_minute"] == EffectiveRule("tokens_per_minute", 50, "model", "a.yaml:20:9")
    assert found["concurrency"] == EffectiveRule("concurrency", 2, "key", "")
    assert found["account_monthly_tokens"] == EffectiveRule("account_monthly_tokens", 900, "account", "")
    assert found["weight"] == EffectiveRule("weight", 1.0, "default", "")
    assert not [rule for rule in found if rule.startswith("per_model")]


async def test_rules_in_shadow_refuse_nobody(build: Build) -> None:
    house = build(requests_per_minute=1, shadow=frozenset({"requests_per_minute"}))
    await house.admit()
    found = await explained(house, call=house.call())
    assert ([said.verdict for said in found.says], found.verdict) == (["shadow"], "allowed")


async def test_who_may_wait_waits(build: Build) -> None:
    house = build(concurrency=1, max_waiting=1, max_wait_s=3.0)
    await house.admit()
    assert (await explained(house)).verdict == "waits"


async def test_a_model_and_an_output_that_are_not_allowed_refuse_first(build: Build) -> None:
    house = build(models=frozenset({"other"}), requests_per_minute=1)
    assert (await explained(house)).refused_by == "models"
    house = build(max_output_tokens=9)
    assert (await explained(house, call=house.call())).refused_by == "max_output_tokens"


async def test_without_a_server_a_request_is_not_sized(build: Build) -> None:
    house = build(tokens_per_minute=15)
    found = await explained(house, call=house.call(), served=False)
    assert (found.cost, found.verdict) == (None, "allowed")
    assert found.remarks == [
        "The request is not sized: its model is not known.",
        f"No sidecar that serves '{house.model.id}' is known here.",
    ]
    found = await explained(build(bound=None), call=house.call(), counts=False)
    assert found.remarks == ["The request is not sized: its bytes do not bound its tokens."]


async def test_a_prompt_without_room_for_an_answer_is_told(build: Build) -> None:
    house = build(bound=None, max_context=10)
    found = await explained(house, call=house.call())
    assert "leaves no room" in found.remarks[0]
