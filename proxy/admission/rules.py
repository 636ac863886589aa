"""The rules that one key meets on one model: its tier's, with the key's own and then the model's in their place.

Compiled once for each such pair and kept while the policy is the same. Nothing is counted or decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

from msgspec.structs import replace as struct_replace

from proxy.admission.rate import Rate
from proxy.admission.shedding import queue_share
from proxy.exchange import Principal
from proxy.policy.schema import ModelRules, Overrides, Policy, Rule, Tier, number
from proxy.store.standing import Monthly

MOST_KEPT: Final = 4096
# The order in which they refuse: what passes soonest first, so that a client that waits as told gets furthest.
ORDER: Final[tuple[Rule, ...]] = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "monthly_requests",
    "monthly_tokens",
    "account_monthly_requests",
    "account_monthly_tokens",
)
# Of an account's own limits, those that hold for all of its keys together.
OF_ACCOUNT: Final[dict[Rule, str]] = {
    "account_monthly_requests": "monthly_requests",
    "account_monthly_tokens": "monthly_tokens",
}
SOFT: Final = ("monthly_requests", "monthly_tokens")
OUTPUT: Final = "max_output_tokens"
Source = Literal["tier", "model", "key", "account"]
# What several proxies count together. Who runs how much at once, each knows of its own requests, too.
RATES: Final[tuple[Rule, ...]] = ("requests_per_minute", "tokens_per_minute")
SHARED: Final[tuple[Rule, ...]] = (*RATES, "concurrency")


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that is there. `whose` says whose it is, in words. `shadow`: it decides and counts, and lets pass.

    `apart` goes behind the key's id to name what is counted: it is empty, but for a model's own limits. `elsewhere`: it
    is counted for all proxies together, which is more than is known here.
    """

    rule: Rule
    rate: Rate
    whose: str
    apart: str = ""
    shadow: bool = False
    elsewhere: bool = False

    @property
    def most(self) -> int:
        return self.rate.limit

    @property
    def sized(self) -> bool:
        """Whether it depends on the size of a request."""
        return "tokens" in self.rule


@dataclass(frozen=True, slots=True)
class SoftQuota:
    """From where on a month is nearly over for a key: `most` of what `counts` names, with `hard` as the end if any."""

    counts: str
    most: int
    hard: int | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a key on a model, by a revision of the policy. The tier is without what is in shadow.

    `limits` are in the order in which they refuse, those in shadow among them, and some by their names too. `tried` are
    the tokens of limits in shadow: as much as a request could ever hold if they were in force. `may_wait`: where too
    many run at once, one more may wait for its turn. `queue_share`: how much of the sidecars' queue it may fill.
    `monthly` are the quotas in force, for the ledger.
    """

    tier: Tier
    revision: str
    limits: tuple[Limit, ...]
    requests: Limit | None
    tokens: Limit | None
    concurrency: Limit | None
    output_whose: str
    tried: tuple[int, ...]
    soft: tuple[SoftQuota, ...]
    may_wait: bool
    queue_share: float
    monthly: Monthly


class Rulebook:
    """Compiles rules, and keeps them. Mutable: `_compiled`, by what they depend on, of the policy `_of`.

    `share`: by how much the limits of a minute and at once are to be divided here; None where all proxies count
    together.
    """

    def __init__(self, policy: Callable[[], Policy], share: Callable[[], int | None] = lambda: 1) -> None:
        self._policy = policy
        self._share = share
        self._of: Policy | None = None
        self._compiled: dict[tuple[str, Overrides, Overrides, str | None, int | None], Rules] = {}

    def of(self, principal: Principal, model: str | None) -> Rules:
        """The rules for a key on a model, by its served name, or on none. Raises ApiError 403 if its tier is gone."""
        policy = self._policy()
        if policy is not self._of or len(self._compiled) >= MOST_KEPT:
            self._of, self._compiled = policy, {}
        tier = policy.tier(principal.tier)
        # Models without rules of their own share an entry, so that names that clients make up fill nothing.
        apart = model if model in tier.per_model else None
        share = self._share()
        key = (principal.tier, principal.limits, principal.account_limits, apart, share)
        found = self._compiled.get(key)
        if found is None:
            own = Own(principal.limits, principal.account_limits, apart)
            found = self._compiled[key] = compiled(policy, tier, own, share)
        return found


@dataclass(frozen=True, slots=True)
class Own:
    """What stands in the place of a tier's limits: a key's, its account's, those of a model that the tier has some for.

    `model` is None where the tier has none.
    """

    key: Overrides
    account: Overrides
    model: str | None = None


def effective(tier: Tier, own: Own) -> Tier:
    """The tier with what stands in the place of its limits: the key's, then the model's, and the account's."""
    return _under_account(tier.under(own.key).under(_of_model(tier, own)), own.account)


def source(rule: str, tier: Tier, own: Own) -> Source:
    """Whose limit it is that counts."""
    if rule in OF_ACCOUNT:
        return "account" if getattr(own.account, OF_ACCOUNT[rule]) is not None else "tier"
    if getattr(_of_model(tier, own), rule, None) is not None:
        return "model"
    return "key" if getattr(own.key, rule, None) is not None else "tier"


def compiled(policy: Policy, tier: Tier, own: Own, share: int | None = 1) -> Rules:
    with_own = _divided(effective(tier, own), share or 1)
    limits = {rule: limit for rule in ORDER if (limit := _limit(rule, with_own, tier, own)) is not None}
    if share is None:
        limits |= {rule: replace(limits[rule], elsewhere=True) for rule in RATES if _binds(limits.get(rule))}
    not_in_force = {rule: None for rule in with_own.shadow if rule in limits}
    in_force = struct_replace(with_own, **not_in_force) if not_in_force else with_own
    return Rules(
        tier=in_force,
        revision=policy.revision,
        limits=tuple(limits.values()),
        requests=limits.get("requests_per_minute"),
        tokens=limits.get("tokens_per_minute"),
        concurrency=limits.get("concurrency"),
        output_whose=_whose(OUTPUT, tier, own),
        tried=tuple(limit.most for limit in limits.values() if limit.shadow and limit.sized),
        may_wait=in_force.concurrency is not None and in_force.max_waiting > 0 and in_force.max_wait_s > 0,
        soft=tuple(quota for counts in SOFT if (quota := _soft(counts, in_force)) is not None),
        queue_share=queue_share(tier.priority, {other.priority for other in policy.tiers.values()}),
        monthly=Monthly(**{field.name: getattr(in_force, field.name) for field in fields(Monthly)}),
    )


def _binds(limit: Limit | None) -> bool:
    return limit is not None and not limit.shadow


def _divided(tier: Tier, share: int) -> Tier:
    """A proxy's share of what all of them allow: one at least, so that nobody is shut out."""
    if share == 1:
        return tier
    whole = {rule: getattr(tier, rule) for rule in SHARED}
    return struct_replace(tier, **{rule: max(1, most // share) for rule, most in whole.items() if most is not None})


def _under_account(tier: Tier, account: Overrides) -> Tier:
    given = {rule: getattr(account, name) for rule, name in OF_ACCOUNT.items()}
    replaced = {rule: number(limit) for rule, limit in given.items() if limit is not None}
    return struct_replace(tier, **replaced) if replaced else tier


def _of_model(tier: Tier, own: Own) -> ModelRules:
    return tier.per_model[own.model] if own.model is not None else ModelRules()


def _limit(rule: Rule, with_own: Tier, tier: Tier, own: Own) -> Limit | None:
    most: int | None = getattr(with_own, rule)
    if most is None:
        return None
    # A space is in no key's id: what is counted for a model is never taken for another key's.
    apart = f" {own.model}" if source(rule, tier, own) == "model" else ""
    return Limit(rule, Rate(most), _whose(rule, tier, own), apart, shadow=rule in tier.shadow)


def _soft(counts: str, tier: Tier) -> SoftQuota | None:
    most: int | None = getattr(tier, f"soft_{counts}")
    return None if most is None else SoftQuota(counts, most, getattr(tier, counts))


def _whose(rule: str, tier: Tier, own: Own) -> str:
    whose = source(rule, tier, own)
    if rule in OF_ACCOUNT:
        of_account = whose == "account"
        return "for all keys of this account" if of_account else f"for all keys of an account in the tier '{tier.name}'"
    if whose == "model":
        return f"for the model '{own.model}' in the tier '{tier.name}'"
    return "for this API key" if whose == "key" else f"in the tier '{tier.name}'"
