"""A recorded request as admission takes it: the call, the model and the principal, made from numbers. Pure.

What a record does not say is assumed: `assumed` tells of which kind, so that a report can.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from proxy.admission.rules import ORDER, OUTPUT
from proxy.exchange import Call, Principal
from proxy.policy.schema import NO_OVERRIDES, Overrides
from proxy.store.posting import State
from proxy.store.recordings import PAID, Recorded
from sidecar.wire.internal import Endpoint, ModelState, TokenBound

REFUSED: Final = "refused"
ELSEWHERE: Final = "elsewhere"
OLD: Final = "old"
OPEN: Final = "open"


# The rules that admission decides, and so a simulation. What another room refused it would refuse again.
TRIED: Final = frozenset({*ORDER, OUTPUT, "models", "tiers"})


class Caller(msgspec.Struct, frozen=True):
    """What a key has of its own, now, and what it had used of the first month before the recording."""

    key_id: str
    account_id: str
    models: list[str] | None = None
    limits: Overrides = NO_OVERRIDES
    account_limits: Overrides = NO_OVERRIDES
    used_tokens: int = 0
    used_requests: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request to simulate. `runs_s`: for how long, if let in. `completion_tokens` of None: nothing of it ran."""

    recorded: Recorded
    principal: Principal
    call: Call
    model: ModelState
    prompt_tokens: int
    completion_tokens: int | None
    runs_s: float
    assumed: str = ""


@dataclass(frozen=True, slots=True)
class Usual:
    """What the requests of a model usually took, for those of which no one knows."""

    completion_tokens: int
    runs_s: float


def usual(recorded: Iterable[Recorded]) -> dict[str, Usual]:
    """The means of those that ran, by model; under the empty name of all."""
    grouped: dict[str, list[Recorded]] = defaultdict(list)
    for one in recorded:
        if one.state in PAID:
            grouped[one.model].append(one)
            grouped[""].append(one)
    return {
        model: Usual(
            round(sum(one.completion_tokens / one.choices for one in of) / len(of)),
            sum(_took_s(one) for one in of) / len(of),
        )
        for model, of in grouped.items()
    }


def request(recorded: Recorded, caller: Caller | None, means: Mapping[str, Usual]) -> Request:
    """Raises ValueError for an endpoint that this version does not have."""
    ran = recorded.state in PAID
    mean = means.get(recorded.model) or means.get("") or Usual(0, 0.0)
    known = recorded.max_context is not None
    # Of a row of an earlier version only what it produced is known; it wanted that much at least.
    asked = recorded.asked_output_tokens if known else -(-recorded.completion_tokens // recorded.choices)
    completion: int | None = recorded.completion_tokens
    runs_s, assumed = _took_s(recorded), "" if known else OLD
    if recorded.state == State.REFUSED or recorded.ended is None:
        completion, runs_s = mean.completion_tokens * recorded.choices, mean.runs_s
        assumed = REFUSED if recorded.state == State.REFUSED else OPEN
        if recorded.rule is not None and recorded.rule not in TRIED:
            assumed = ELSEWHERE
    elif not ran:
        completion = None
    return Request(
        recorded=recorded,
        principal=_principal(recorded, caller),
        call=_call(recorded, asked),
        model=_model(recorded),
        prompt_tokens=_prompt(recorded),
        completion_tokens=completion,
        runs_s=runs_s,
        assumed=assumed,
    )


def _took_s(recorded: Recorded) -> float:
    return max(0.0, ((recorded.ended or recorded.created) - recorded.created) / dt.timedelta(seconds=1))


def _prompt(recorded: Recorded) -> int:
    """As it was counted. Where nothing ran, the most it can have been, with room for an answer."""
    if recorded.prompt_tokens:
        return recorded.prompt_tokens
    if recorded.bound_prompt_tokens is not None:
        return recorded.bound_prompt_tokens
    asked = (recorded.asked_output_tokens or 0) * recorded.choices
    return max(1, min(recorded.est_tokens - asked, (recorded.max_context or recorded.est_tokens) - 1))


def _principal(recorded: Recorded, caller: Caller | None) -> Principal:
    return Principal(
        account_id=recorded.account_id,
        key_id=recorded.key_id,
        tier=recorded.tier,
        models=None if caller is None or caller.models is None else frozenset(caller.models),
        limits=NO_OVERRIDES if caller is None else caller.limits,
        account_limits=NO_OVERRIDES if caller is None else caller.account_limits,
    )


def _call(recorded: Recorded, asked: int | None) -> Call:
    prompts, bound = recorded.prompts or 1, recorded.bound_prompt_tokens
    return Call(
        endpoint=Endpoint(recorded.endpoint),
        model=recorded.model,
        stream=recorded.stream,
        choices=recorded.choices,
        max_output_tokens=asked,
        max_output_param="max_tokens",
        messages=prompts,
        # With the model's own share of it, below, as long as the bound says.
        body=b"x" * ((bound or 0) % prompts),
        plain=bound is not None,
    )


def _model(recorded: Recorded) -> ModelState:
    prompts, bound = recorded.prompts or 1, recorded.bound_prompt_tokens
    return ModelState(
        id=recorded.model,
        max_context=recorded.max_context or _most(recorded),
        tier="",
        precision="",
        device="",
        fingerprint="",
        created=0,
        capabilities=[],
        bound=None if bound is None else TokenBound(per_request=0, per_message=bound // prompts),
    )


def _most(recorded: Recorded) -> int:
    """A context in which a request of an unknown one had room."""
    return max(recorded.est_tokens, recorded.prompt_tokens + recorded.completion_tokens) + 1
