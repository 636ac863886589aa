"""What a call may cost at most: never less than what it can cost, and never more than the context allows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.estimate import Sizing
from proxy.exchange import Call
from proxy.policy.schema import Tier
from sidecar.wire.internal import Endpoint, ModelState, TokenBound

BOUND = TokenBound(per_request=7, per_message=5)


def sizing(
    *,
    asked: int | None = 10,
    choices: int = 1,
    messages: int = 1,
    size: int = 100,
    max_context: int = 1000,
    **more: Any,
) -> Sizing:
    endpoint = more.pop("endpoint", Endpoint.CHAT)
    bound = more.pop("bound", BOUND)
    call = Call(
        endpoint=endpoint,
        model="m",
        stream=False,
        choices=choices,
        max_output_tokens=asked,
        max_output_param="max_tokens",
        messages=messages,
        body=b"x" * size,
    )
    names = ("requests_per_minute", "tokens_per_minute", "concurrency", "monthly_requests", "monthly_tokens")
    limits: dict[str, Any] = dict.fromkeys((*names, "max_output_tokens", "default_output_tokens")) | more
    tier = Tier(name="t", models=frozenset({"*"}), priority=0, **limits)
    return Sizing(call, ModelState("m", max_context, "packed", "fp32", "cpu", "fp", 0, [], bound), tier)


def test_the_bound_is_the_template_and_a_token_for_each_byte() -> None:
    estimate = sizing(messages=3, size=100).bounded()
    assert estimate is not None
    assert (estimate.prompt_tokens, estimate.output_tokens, estimate.exact) == (7 + 3 * 5 + 100, 10, False)


def test_each_prompt_of_a_list_costs_what_any_prompt_costs() -> None:
    estimate = sizing(endpoint=Endpoint.COMPLETIONS, messages=3, choices=6, size=100).bounded()
    assert estimate is not None
    assert estimate.prompt_tokens == 3 * (7 + 5) + 100
    assert estimate.total == estimate.prompt_tokens + 60


def test_where_bytes_do_not_bound_tokens_there_is_no_bound() -> None:
    assert sizing(bound=None).bounded() is None


def test_a_bound_beyond_the_context_leaves_the_output_whole() -> None:
    estimate = sizing(size=5000, asked=300).bounded()
    assert estimate is not None
    assert (estimate.prompt_tokens, estimate.output_tokens, estimate.total) == (700, 300, 1000)


@given(
    prompt=st.integers(1, 999),
    slack=st.integers(0, 3000),
    asked=st.one_of(st.none(), st.integers(1, 3000)),
    choices=st.integers(1, 8),
    default=st.one_of(st.none(), st.integers(1, 2000)),
)
def test_no_true_prompt_within_the_bound_costs_more_than_the_bound(
    prompt: int, slack: int, asked: int | None, choices: int, default: int | None
) -> None:
    sizes = sizing(
        asked=asked, choices=choices, size=prompt + slack, bound=TokenBound(0, 0), default_output_tokens=default
    )
    bounded, exact = sizes.bounded(), sizes.exact(prompt)
    assert bounded is not None
    assert exact.total <= bounded.total
    # What one sequence may hold, for each of them.
    assert exact.prompt_tokens + exact.output_tokens <= 1000
    assert exact.output_tokens <= bounded.output_tokens


@pytest.mark.parametrize(
    ("asked", "default", "most", "output"),
    [
        (30, 20, None, 30),
        (None, 20, None, 20),
        (None, None, 25, 25),
        (None, None, None, 900),
        (2000, 20, None, 900),
    ],
)
def test_output_is_what_was_asked_for_or_what_the_tier_gives(
    asked: int | None, default: int | None, most: int | None, output: int
) -> None:
    sizes = sizing(asked=asked, default_output_tokens=default, max_output_tokens=most)
    assert sizes.exact(100).output_tokens == output


@pytest.mark.parametrize("limit", ["tokens_per_minute", "monthly_tokens"])
def test_output_that_nobody_asked_for_is_never_more_than_a_limit_can_hold(limit: str) -> None:
    assert sizing(asked=None, choices=2, **{limit: 301}).exact(100).total == 300
    # What was asked for is not cut: it is refused.
    assert sizing(asked=200, choices=2, **{limit: 301}).exact(100).total == 500


def test_several_prompts_do_not_share_a_context() -> None:
    sizes = sizing(endpoint=Endpoint.COMPLETIONS, messages=3, choices=3, asked=500)
    assert not sizes.one_prompt
    assert sizes.exact(2400).total == 2400 + 3 * 500


def test_a_message_of_anthropic_s_is_one_prompt() -> None:
    sizes = sizing(endpoint=Endpoint.MESSAGES, messages=3, size=100)
    assert sizes.one_prompt
    assert sizes.bounded() == sizing(messages=3, size=100).bounded()


def test_embeddings_cost_their_inputs_alone() -> None:
    several = sizing(endpoint=Endpoint.EMBEDDINGS, messages=3, asked=0, size=2000)
    bounded = several.bounded()
    assert bounded is not None
    assert bounded.total == 3 * (7 + 5) + 2000
    assert several.exact(2400).total == 2400
    one = sizing(endpoint=Endpoint.EMBEDDINGS, asked=0, size=2000).bounded()
    assert one is not None
    assert one.total == 1000
