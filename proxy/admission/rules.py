"""The rules that one key meets on one model: its tier's, with the key's own and then the model's in their place.

Compiled once for each such pair and kept while the policy is the same. Nothing is counted or decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from proxy.admission.rate import Rate
from proxy.exchange import Principal
from proxy.policy.schema import ModelRules, Overrides, Policy, Rule, Tier

MOST_KEPT: Final = 4096
# The order in which they refuse: what passes soonest first, so that a client that waits as told gets furthest.
ORDER: Final[tuple[Rule, ...]] = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "monthly_requests",
    "monthly_tokens",
)
OUTPUT: Final = "max_output_tokens"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that is there. `whose` says whose it is, in words. `shadow`: it decides and counts, and lets pass.

    `apart` goes behind the key's id to name what is counted: it is empty, but for a model's own limits.
    """

    rule: Rule
    rate: Rate
    whose: str
    apart: str = ""
    shadow: bool = False

    @property
    def most(self) -> int:
        return self.rate.limit

    @property
    def sized(self) -> bool:
        """Whether it depends on the size of a request."""
        return "tokens" in self.rule


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a key on a model, by a revision of the policy. The tier is without what is in shadow.

    `limits` are in the order in which they refuse, those in shadow among them, and some by their names too. `tried` are
    the tokens of limits in shadow: as much as a request could ever hold if they were in force.
    """

    tier: Tier
    revision: str
    limits: tuple[Limit, ...]
    requests: Limit | None
    tokens: Limit | None
    concurrency: Limit | None
    output_whose: str
    tried: tuple[int, ...]


class Rulebook:
    """Compiles rules, and keeps them. Mutable: `_compiled`, by what they depend on, of the policy `_of`."""

    def __init__(self, policy: Callable[[], Policy]) -> None:
        self._policy = policy
        self._of: Policy | None = None
        self._compiled: dict[tuple[str, Overrides, str | None], Rules] = {}

    def of(self, principal: Principal, model: str | None) -> Rules:
        """The rules for a key on a model, by its served name, or on none. Raises ApiError 403 if its tier is gone."""
        policy = self._policy()
        if policy is not self._of or len(self._compiled) >= MOST_KEPT:
            self._of, self._compiled = policy, {}
        tier = policy.tier(principal.tier)
        # Models without rules of their own share an entry, so that names that clients make up fill nothing.
        apart = model if model in tier.per_model else None
        key = (principal.tier, principal.limits, apart)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = compiled(policy.revision, tier, principal.limits, apart)
        return found


def compiled(revision: str, tier: Tier, own: Overrides, model: str | None) -> Rules:
    """`model` is one that the tier has rules for, or None."""
    of_model = tier.per_model[model] if model is not None else ModelRules()
    effective = tier.under(own).under(of_model)
    limits = {rule: limit for rule in ORDER if (limit := _limit(rule, effective, own, of_model, model)) is not None}
    in_force = {rule: None for rule in effective.shadow if rule in limits}
    return Rules(
        tier=replace(effective, **in_force) if in_force else effective,
        revision=revision,
        limits=tuple(limits.values()),
        requests=limits.get("requests_per_minute"),
        tokens=limits.get("tokens_per_minute"),
        concurrency=limits.get("concurrency"),
        output_whose=_whose(OUTPUT, effective, own, of_model, model),
        tried=tuple(limit.most for limit in limits.values() if limit.shadow and limit.sized),
    )


def _limit(rule: Rule, effective: Tier, own: Overrides, of_model: ModelRules, model: str | None) -> Limit | None:
    most: int | None = getattr(effective, rule)
    if most is None:
        return None
    # A space is in no key's id: what is counted for a model is never taken for another key's.
    apart = f" {model}" if getattr(of_model, rule, None) is not None else ""
    whose = _whose(rule, effective, own, of_model, model)
    return Limit(rule, Rate(most), whose, apart, shadow=rule in effective.shadow)


def _whose(rule: str, tier: Tier, own: Overrides, of_model: ModelRules, model: str | None) -> str:
    if getattr(of_model, rule, None) is not None:
        return f"for the model '{model}' in the tier '{tier.name}'"
    if getattr(own, rule, None) is not None:
        return "for this API key"
    return f"in the tier '{tier.name}'"
