"""What a policy file may say, and the compiled snapshot the proxy runs on.

A file's shape is `PolicyFile`; `load` merges the files of a folder into one immutable `Policy`. Limits of None mean
"no limit" and are written `unlimited` in a file.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from proxy.verdict import RefusedError

Count = Annotated[int, Meta(ge=1, le=10**15)]
Limit = Count | Literal["unlimited"]
CacheScope = Literal["key", "account", "global"]
ReplayMode = Literal["off", "duplicate", "signed"]
# The rules that may be tried before they bite, by the name of their field.
Rule = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "monthly_requests",
    "monthly_tokens",
    "account_monthly_requests",
    "account_monthly_tokens",
    "equal_prompts_per_minute",
]
UNLIMITED: Final = "unlimited"
# On every answer of the public listener: the revision of the policy that the request was served under.
POLICY_HEADER: Final = "x-tollhouse-policy"


class ModelRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What holds for one model instead of the tier's own: counted apart from the other models. None: as the tier."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = None
    max_output_tokens: Limit | None = None
    default_output_tokens: Limit | None = None


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What holds for one key, or for one account, instead of what its tier says. None: as the tier.

    Of an account only the monthly ones: they are what all of its keys may use together.
    """

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = None
    monthly_requests: Limit | None = None
    monthly_tokens: Limit | None = None
    max_output_tokens: Limit | None = None
    default_output_tokens: Limit | None = None


NO_OVERRIDES: Final = Overrides()


class TierRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One tier as a file writes it. Every limit is stated: a forgotten one must not mean "no limit".

    Rates are per key and minute, quotas per key and UTC calendar month. `max_output_tokens` caps what a request may ask
    for, per choice; `default_output_tokens` is what it gets when it asks for nothing. `models` are served names or "*".
    A higher `priority` is scheduled first; accounts of one priority share what the model can do by their `weight`.
    `cache_scope`: who may find computed prompts of whom, and could tell by the time that somebody asked before.
    `response_retention_days`: how long what /v1/responses was asked and answered is kept; 0 keeps no content at all.
    `per_model`: limits of a model's own, by its served name. `shadow`: rules that decide and count, and let pass.
    The `soft_` quotas warn, the `account_` ones hold for all keys of an account together. Up to `max_waiting` requests
    of a key wait up to `max_wait_s` for their turn when `concurrency` is used up. `equal_prompts_per_minute`: how often
    a key may send the same prompt; used from more than `addresses_per_hour` addresses it is reported, not refused.
    `response_headers` are added to every answer.
    """

    requests_per_minute: Limit
    tokens_per_minute: Limit
    concurrency: Limit
    monthly_requests: Limit
    monthly_tokens: Limit
    max_output_tokens: Limit
    default_output_tokens: Limit
    models: Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(min_length=1, max_length=1000)]
    priority: Annotated[int, Meta(ge=0, le=100)]
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    cache_scope: CacheScope = "account"
    response_retention_days: Annotated[int, Meta(ge=0, le=3650)] = 0
    per_model: Annotated[dict[str, ModelRules], Meta(max_length=1000)] = {}
    shadow: list[Rule] = []
    soft_monthly_requests: Limit = UNLIMITED
    soft_monthly_tokens: Limit = UNLIMITED
    account_monthly_requests: Limit = UNLIMITED
    account_monthly_tokens: Limit = UNLIMITED
    max_wait_s: Annotated[float, Meta(ge=0, le=300)] = 0.0
    max_waiting: Annotated[int, Meta(ge=0, le=10_000)] = 0
    replay: ReplayMode = "off"
    idempotency_bodies: bool = False
    equal_prompts_per_minute: Limit = UNLIMITED
    addresses_per_hour: Limit = UNLIMITED
    response_headers: Annotated[dict[str, str], Meta(max_length=20)] = {}


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A policy file."""

    version: Literal[1]
    tiers: dict[str, TierRules]


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """One tier, compiled: None where there is no limit."""

    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    monthly_requests: int | None
    monthly_tokens: int | None
    max_output_tokens: int | None
    default_output_tokens: int | None
    models: frozenset[str]
    priority: int
    weight: float = 1.0
    cache_scope: CacheScope = "account"
    response_retention_days: int = 0
    per_model: dict[str, ModelRules] = {}
    shadow: frozenset[Rule] = frozenset()
    soft_monthly_requests: int | None = None
    soft_monthly_tokens: int | None = None
    account_monthly_requests: int | None = None
    account_monthly_tokens: int | None = None
    max_wait_s: float = 0.0
    max_waiting: int = 0
    replay: ReplayMode = "off"
    idempotency_bodies: bool = False
    equal_prompts_per_minute: int | None = None
    addresses_per_hour: int | None = None
    response_headers: dict[str, str] = {}

    def under(self, own: Overrides | ModelRules) -> "Tier":
        """The tier with a key's or a model's own limits in the place of its own."""
        given = {name: getattr(own, name) for name in own.__struct_fields__}
        replaced = {name: number(limit) for name, limit in given.items() if limit is not None}
        return msgspec.structs.replace(self, **replaced) if replaced else self

    def allows(self, model: str) -> bool:
        return "*" in self.models or model in self.models


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All tiers of a policy folder. `revision` is the first 12 hex digits of the SHA-256 of its files.

    `places` tells where each stated field of a tier stands, as `file:line:column`.
    """

    tiers: dict[str, Tier]
    revision: str
    places: dict[str, dict[str, str]] = {}

    def tier(self, name: str) -> Tier:
        """The tier of a key. Raises RefusedError 403 for one that no file has any more: the operator is to fix that."""
        tier = self.tiers.get(name)
        if tier is None:
            raise RefusedError(
                "tiers",
                403,
                "This API key belongs to a tier that this server does not have. Its operator must give it another.",
                code="permission_denied",
            )
        return tier


def number(limit: Limit) -> int | None:
    """A limit as the compiled policy has it."""
    return None if limit == UNLIMITED else limit
