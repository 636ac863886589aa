"""What a policy file may say, and the compiled snapshot the proxy runs on.

A file's shape is `PolicyFile`; `load` merges the files of a folder into one immutable `Policy`. Limits of None mean
"no limit" and are written `unlimited` in a file.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sidecar.wire.errors import ApiError

Count = Annotated[int, Meta(ge=1, le=10**15)]
Limit = Count | Literal["unlimited"]
CacheScope = Literal["key", "account", "global"]


class TierRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One tier as a file writes it. Every limit is stated: a forgotten one must not mean "no limit".

    Rates are per key and minute, quotas per key and UTC calendar month. `max_output_tokens` caps what a request may ask
    for, per choice; `default_output_tokens` is what it gets when it asks for nothing. `models` are served names or "*".
    A higher `priority` is scheduled first; accounts of one priority share what the model can do by their `weight`.
    `cache_scope`: who may find computed prompts of whom, and could tell by the time that somebody asked before.
    `response_retention_days`: how long what /v1/responses was asked and answered is kept; 0 keeps no content at all.
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

    def allows(self, model: str) -> bool:
        return "*" in self.models or model in self.models


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All tiers of a policy folder. `revision` is the first 12 hex digits of the SHA-256 of its files."""

    tiers: dict[str, Tier]
    revision: str

    def tier(self, name: str) -> Tier:
        """The tier of a key. Raises ApiError 403 for one that no file has any more: that is the operator's to fix."""
        tier = self.tiers.get(name)
        if tier is None:
            raise ApiError(
                403,
                "This API key belongs to a tier that this server does not have. Its operator must give it another.",
                code="permission_denied",
            )
        return tier
