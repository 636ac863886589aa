"""What the rules say of one key and one request, now: looked at, and nothing taken.

The same rules, meters and sizes as `gate` has. Rules of other rooms are shown, not judged.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from proxy.admission.estimate import Sizing
from proxy.admission.meters import Meters, Size, Subject
from proxy.admission.refusal import CONCURRENCY_RETRY_S
from proxy.admission.rules import OUTPUT, Limit, Own, Rulebook, Rules, effective, source
from proxy.clock import Clock, month_of, seconds_to_next_month
from proxy.exchange import Call, Estimate, Principal
from proxy.policy.difference import Shown, shown
from proxy.policy.schema import Policy, Tier
from sidecar.wire.internal import Count, Endpoint, ModelState

Verdict = Literal["allowed", "waits", "shadow", "refused"]
_OF_MODELS: Final = "per_model."
# Of a request whose size is not known: it takes a token at the least, so a limit that is used up refuses it.
LEAST: Final = Size(1, 1)


class EffectiveRule(msgspec.Struct, frozen=True):
    """A rule as it holds. `source`: whose value it is; `place`: where a file says it, as `file:line:column`."""

    rule: str
    value: Shown
    source: Literal["tier", "model", "key", "account", "default"]
    place: str


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one limit says now. `retry_after_s` of None beside a refusal: it can never fit."""

    rule: str
    verdict: Verdict
    whose: str
    limit: int
    used: int
    requested: int
    retry_after_s: float | None = None


class Cost(msgspec.Struct, frozen=True):
    """Tokens that stay reserved once the prompt is read. `exact`: a sidecar counted it; else its bytes bound it."""

    prompt_tokens: int
    output_tokens: int
    choices: int
    total: int
    exact: bool


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict` is that of the first rule that refuses, named by `refused_by`, or what the others leave."""

    revision: str
    tier: str
    model: str | None
    rules: list[EffectiveRule]
    cost: Cost | None
    says: list[Said]
    verdict: Verdict
    refused_by: str | None
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of models and requests: of a model by its name, of a prompt by its sidecar, of a body."""

    find: Callable[[str], ModelState | None]
    count: Callable[[Call], Awaitable[Count]] | None
    read: Callable[[Endpoint, bytes], Call]


class Explain:
    """The room. Stateless, but for the rules it compiled."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        meters: Meters,
        clock: Clock,
        knowledge: Knowledge,
        share: Callable[[], int | None] = lambda: 1,
    ) -> None:
        """`share` as in `Rulebook`."""
        self._policy = policy
        self._rulebook = Rulebook(policy, share)
        self._meters = meters
        self._clock = clock
        self.knows = knowledge

    async def explain(self, principal: Principal, model: str | None, call: Call | None) -> Explained:
        """Raises ApiError: 403 if the key's tier is gone, 503, and what a sidecar that counts says. StorageError."""
        rules = self._rulebook.of(principal, model)
        now = self._clock.now()
        subject = Subject(principal.key_id, principal.account_id, rules, month_of(now))
        await self._meters.quotas.prime(subject)
        found = None if model is None else self.knows.find(model)
        estimate, size, remarks = await self._sized(subject, call, found)
        if model is not None and found is None:
            remarks.append(f"No sidecar that serves '{model}' is known here.")
        if any(limit.elsewhere for limit in rules.limits):
            remarks.append("The minute is counted by all proxies together; it is shown as this one saw it last.")
        # From here on no `await`: what the limits say is of one moment.
        says = [self._said(subject, limit, size) for limit in rules.limits]
        refused_by = _before(principal, rules, model, call) or next(
            (said.rule for said in says if said.verdict == "refused"), None
        )
        waits = any(said.verdict == "waits" for said in says)
        return Explained(
            revision=rules.revision,
            tier=rules.tier.name,
            model=model,
            rules=self._rules(principal, model),
            cost=None if estimate is None else _cost(estimate),
            says=says,
            verdict="refused" if refused_by else "waits" if waits else "allowed",
            refused_by=refused_by,
            remarks=remarks,
        )

    async def _sized(
        self, subject: Subject, call: Call | None, model: ModelState | None
    ) -> tuple[Estimate | None, Size, list[str]]:
        """As admission sizes it in the end: by its bytes if these fit, into the context window too, else as counted."""
        if call is None:
            return None, LEAST, []
        if model is None:
            return None, LEAST, ["The request is not sized: its model is not known."]
        sizing = Sizing(call, model, subject.rules.tier)
        bounded = sizing.bounded()
        if bounded is not None:
            size = Size(bounded.total, bounded.total)
            whole = bounded.prompt_tokens == sizing.prompt_bound
            fits = not any(limit.sized for limit in self._meters.unfit(subject, size))
            if self.knows.count is None or (whole and fits):
                return bounded, size, []
        if self.knows.count is None:
            return None, LEAST, ["The request is not sized: its bytes do not bound its tokens."]
        estimate = sizing.exact((await self.knows.count(call)).prompt_tokens)
        remarks = []
        if sizing.one_prompt and estimate.prompt_tokens + sizing.least_output > model.max_context:
            remarks.append(f"The prompt leaves no room for an answer in the model's {model.max_context} tokens.")
        return estimate, Size(estimate.total, sizing.tried(estimate, subject.rules.tried)), remarks

    def _said(self, subject: Subject, limit: Limit, size: Size) -> Said:
        meters, tokens = self._meters, size.under(limit)
        fits = limit not in meters.unfit(subject, size)
        retry_after_s: float | None = None
        verdict: Verdict = "allowed" if fits else "shadow" if limit.shadow else "refused"
        if limit.rule in {"requests_per_minute", "tokens_per_minute"}:
            rate = meters.rate_look(subject, limit, tokens)
            used, requested, retry_after_s = rate.used, rate.requested, rate.retry_after_s
        elif limit.rule == "concurrency":
            used, requested, retry_after_s = meters.concurrency_look(subject, limit).running, 1, CONCURRENCY_RETRY_S
            rules = subject.rules
            places = rules.tier.max_waiting - meters.leases.waiting(subject.cell(limit))
            if not fits and rules.may_wait and places > 0:
                verdict = "waits"
        else:
            quota = meters.quota_look(subject, limit, tokens)
            used, requested = quota.used, quota.requested
            if requested <= limit.most:
                retry_after_s = seconds_to_next_month(self._clock.now())
        return Said(
            rule=limit.rule,
            verdict=verdict,
            whose=limit.whose,
            limit=limit.most,
            used=used,
            requested=requested,
            retry_after_s=None if fits else retry_after_s,
        )

    def _rules(self, principal: Principal, model: str | None) -> list[EffectiveRule]:
        policy = self._policy()
        tier = policy.tier(principal.tier)
        own = Own(principal.limits, principal.account_limits, model if model in tier.per_model else None)
        places = policy.places.get(tier.name, {})
        # Other models' limits are not this one's.
        held = {rule: value for rule, value in shown(effective(tier, own)).items() if not rule.startswith(_OF_MODELS)}
        return [_effective(rule, value, tier, own, places) for rule, value in held.items()]


def _effective(rule: str, value: Shown, tier: Tier, own: Own, places: dict[str, str]) -> EffectiveRule:
    whose = source(rule, tier, own)
    if whose == "model":
        return EffectiveRule(rule, value, whose, places.get(f"{_OF_MODELS}{own.model}.{rule}", ""))
    if whose != "tier":
        return EffectiveRule(rule, value, whose, "")
    place = places.get(rule, "")
    return EffectiveRule(rule, value, "tier" if place else "default", place)


def _before(principal: Principal, rules: Rules, model: str | None, call: Call | None) -> str | None:
    """The rule that refuses before anything is counted."""
    tier = rules.tier
    if model is not None and not (tier.allows(model) and (principal.models is None or model in principal.models)):
        return "models"
    asked, most = None if call is None else call.max_output_tokens, tier.max_output_tokens
    return OUTPUT if asked is not None and most is not None and asked > most else None


def _cost(estimate: Estimate) -> Cost:
    return Cost(estimate.prompt_tokens, estimate.output_tokens, estimate.choices, estimate.total, exact=estimate.exact)
