"""What goes into the admin API and comes out of it, and into and out of the commands: one record for each.

Fields of `…Changes` that are left out stay as they are. Nothing is done here.
"""

import datetime as dt
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.policy.schema import Limit, Overrides
from proxy.scopes import Scope
from proxy.store.events import Value

T = TypeVar("T")
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
# What is looked for. Postgres has no text with a NUL in it.
Sought = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
# OpenAI's bounds of metadata: 16 pairs of 64 and 512 characters.
Label = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Meta(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
Metadata = Annotated[dict[Label, Text], Meta(max_length=16)]
MetadataChanges = Annotated[dict[Label, Text | None], Meta(max_length=16)]
Models = Annotated[list[Name], Meta(min_length=1, max_length=1000)]
Scopes = Annotated[list[Scope], Meta(min_length=1, max_length=20)]
# In CIDR: 192.0.2.0/24. An address alone is a network of one.
Networks = Annotated[list[Annotated[str, Meta(min_length=2, max_length=50)]], Meta(max_length=100)]
LogState = Literal["reserved", "settled", "forced", "void", "refused"]
KeyState = Literal["active", "expired", "revoked", "disabled"]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is given where nothing is to be said."""


class Paging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of a list: `limit` entries, from behind the one that the part before named as `next`."""

    after: Sought | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list. `next` is the `after` of the part that follows; null at the end."""

    data: list[T]
    next: str | None = None


# --- accounts ---


class AccountLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What all keys of an account may use together in a month. Null: what their tier says."""

    monthly_requests: Limit | None = None
    monthly_tokens: Limit | None = None


class AccountLimitChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Null takes a limit of its own away."""

    monthly_requests: Limit | UnsetType | None = UNSET
    monthly_tokens: Limit | UnsetType | None = UNSET


class Account(msgspec.Struct, frozen=True):
    """One account. Times are UTC. The keys of one that is disabled are refused as if they were revoked."""

    id: str
    name: str
    created: dt.datetime
    disabled: bool = False
    limits: AccountLimits = AccountLimits()
    metadata: dict[str, str] = {}


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An account to be made."""

    name: Name
    limits: AccountLimits = AccountLimits()
    metadata: Metadata = {}


class AccountChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Metadata whose value is null is removed."""

    name: Name | UnsetType = UNSET
    limits: AccountLimitChanges = AccountLimitChanges()
    metadata: MetadataChanges = {}


# --- keys ---


class KeyLimitChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Null takes a limit of its own away: the tier's holds again."""

    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    concurrency: Limit | UnsetType | None = UNSET
    monthly_requests: Limit | UnsetType | None = UNSET
    monthly_tokens: Limit | UnsetType | None = UNSET
    max_output_tokens: Limit | UnsetType | None = UNSET
    default_output_tokens: Limit | UnsetType | None = UNSET


class Key(msgspec.Struct, frozen=True):
    """One key, without its secret.

    `models` of null is all that the tier allows, `scopes` of null all but the administrative ones, `expires` of null is
    never. `limits` are those that are not the tier's. `old_until`: until when the secret before the last rotation is
    good. `signed`: it signs its requests, and shows `thp_` and its id.
    """

    key_id: str
    name: str
    account: str
    tier: str
    models: list[str] | None
    created: dt.datetime
    expires: dt.datetime | None
    last_used: dt.datetime | None
    revoked: bool
    state: KeyState = "active"
    scopes: list[str] | None = None
    limits: Overrides = Overrides()
    metadata: dict[str, str] = {}
    allow_from: list[str] = []
    deny_from: list[str] = []
    old_until: dt.datetime | None = None
    signed: bool = False


class CreatedKey(msgspec.Struct, frozen=True):
    """A secret, which is kept nowhere and never shown again, and the key that it is of.

    `old_until`: until when the secret before it is good.
    """

    secret: str
    key_id: str
    name: str
    account: str
    tier: str
    old_until: dt.datetime | None = None


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A key to be made. `account` is an account's name or id. `signed`: a key that signs its requests."""

    account: Name
    tier: Name
    name: Name
    models: Models | None = None
    expires: dt.datetime | None = None
    scopes: Scopes | None = None
    limits: Overrides = Overrides()
    metadata: Metadata = {}
    allow_from: Networks = []
    deny_from: Networks = []
    signed: bool = False


class KeyChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Metadata whose value is null is removed; an empty list of networks is none."""

    name: Name | UnsetType = UNSET
    tier: Name | UnsetType = UNSET
    models: Models | UnsetType | None = UNSET
    expires: dt.datetime | UnsetType | None = UNSET
    scopes: Scopes | UnsetType | None = UNSET
    limits: KeyLimitChanges = KeyLimitChanges()
    metadata: MetadataChanges = {}
    allow_from: Networks | UnsetType = UNSET
    deny_from: Networks | UnsetType = UNSET


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For how long the secret so far is good beside the new one."""

    grace_s: Annotated[float, Meta(ge=0, le=90 * 86_400)] = 86_400.0


class KeyQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """`account`: only the keys of this one, by its name or id."""

    account: Sought | None = None


# --- reports ---


class UsageQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """`period`: a UTC calendar month as `2026-11`; the current one if not given."""

    period: Sought | None = None
    account: Sought | None = None


class UsageRow(msgspec.Struct, frozen=True):
    """What one key used in a period, and what it may use; null where there is no limit."""

    key_id: str
    name: str
    account: str
    tier: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    reserved_tokens: int
    reserved_requests: int
    monthly_tokens: int | None
    monthly_requests: int | None


class Usage(msgspec.Struct, frozen=True):
    """One UTC calendar month, a row for each key; `next` as in a list."""

    period: str
    rows: list[UsageRow]
    next: str | None = None


class AuditQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """`target`: only what was done to the key or account of this id. `actor`: only what was done by this one."""

    target: Sought | None = None
    actor: Sought | None = None


class AuditEvent(msgspec.Struct, frozen=True):
    """What was done to a key or an account. `changes`: each field's value before and after.

    `actor` is `socket:UID` for a user of the admin socket, a key's id, `cli` for a command on a database without a
    server, or `house`.
    """

    id: str
    time: dt.datetime
    actor: str
    action: str
    target: str
    request_id: str | None
    address: str | None
    changes: dict[str, list[Value]]


class LogQuery(Paging, frozen=True, forbid_unknown_fields=True):
    """Which requests: of a key's id, of an account by its name or id, on a model, that came from `since` on and before
    `until`, with a status, in a state.
    """

    key: Sought | None = None
    account: Sought | None = None
    model: Sought | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    status: Annotated[int, Meta(ge=100, le=599)] | None = None
    state: LogState | None = None


class UpstreamState(msgspec.Struct, frozen=True):
    """One sidecar as the proxy sees it; `reason` says why it is not ready."""

    name: str
    ready: bool
    reason: str
    models: list[str]


class ServerState(msgspec.Struct, frozen=True):
    """The running server.

    `policy_problems`: what is wrong with the policy files as they are now, while an earlier revision is in force.
    `tiers`: the names of that revision's.
    """

    version: str
    pid: int
    ready: bool
    reason: str
    host: str
    port: int
    admin_host: str
    admin_port: int
    boot_id: str
    policy_revision: str
    requests_in_progress: int
    upstreams: list[UpstreamState]
    policy_problems: list[str] = []
    tls: bool = False
    tiers: list[str] = []
