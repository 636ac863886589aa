"""What an operator does, as plain functions on the stores: the admin API and the command line call the same ones.

No HTTP here and no printing. What goes in and comes out are the wire's records, so that a command gets the same answer
from a running server (`proxy.admin.client`) as from a database it opened itself (`proxy.app.open_desk`). Failures are
`ApiError`s, as everywhere.
"""

import contextlib
import datetime as dt
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta

from proxy.clock import Clock, month_of
from proxy.identity import SIGNED_VERSION, MintedKey
from proxy.policy.schema import Policy
from proxy.store import accounts as store
from proxy.store.accounts import AccountExistsError, Accounts
from proxy.store.database import StorageError
from proxy.store.keys import KeyRecord, Keys, UnknownKeyError
from proxy.store.ledger import Ledger
from proxy.store.ledger import UsageRow as LedgerRow
from proxy.store.recordings import Recordings
from sidecar.wire.errors import ApiError, bad_request, unavailable

T = TypeVar("T")
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]

_PERIOD: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


class Account(msgspec.Struct, frozen=True):
    """One account. `created` is UTC."""

    id: str
    name: str
    created: dt.datetime


class Key(msgspec.Struct, frozen=True):
    """One key, without its secret. `models` of None is all that the tier allows; `expires` of None is never. `signed`:
    it signs its requests, and shows `thp_` and its id.
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
    signed: bool = False


class CreatedKey(msgspec.Struct, frozen=True):
    """A new key with its secret, which is kept nowhere and never shown again."""

    secret: str
    key_id: str
    name: str
    account: str
    tier: str


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /admin/v1/accounts`."""

    name: Name


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /admin/v1/keys`. `account` is an account's name or id. `signed`: a key that signs its requests."""

    account: Name
    tier: Name
    name: Name
    models: Annotated[list[Name], Meta(min_length=1, max_length=1000)] | None = None
    expires: dt.datetime | None = None
    signed: bool = False


class UsageRow(msgspec.Struct, frozen=True):
    """What one key used in a period, and what its tier lets it use; None where there is no limit."""

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
    """`GET /admin/v1/usage`: one UTC calendar month, a row for each key."""

    period: str
    rows: list[UsageRow]


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A list on the wire."""

    data: list[T]


class UpstreamState(msgspec.Struct, frozen=True):
    """One sidecar as the proxy sees it; `reason` says why it is not ready."""

    name: str
    ready: bool
    reason: str
    models: list[str]


class ServerState(msgspec.Struct, frozen=True):
    """`GET /admin/v1/state`: the running server.

    `policy_problems`: what is wrong with the policy files as they are now, while an earlier revision is in force.
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


class Makes(Protocol):
    """What makes keys; see `proxy.identity.Keysmith`."""

    def mint(self, key_id: str | None = None, *, signed: bool = False) -> MintedKey: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What the actions work on. `revoked` is told the id of a key that was just revoked."""

    accounts: Accounts
    keys: Keys
    ledger: Ledger
    smith: Makes
    current_policy: Callable[[], Policy]
    clock: Clock
    revoked: Callable[[str], None]
    recordings: Recordings

    @property
    def policy(self) -> Policy:
        """The policy of now."""
        return self.current_policy()


async def create_account(desk: Desk, wanted: NewAccount) -> Account:
    """Raises ApiError 409 if the name is taken."""
    made = store.Account(id=f"acct_{secrets.token_hex(8)}", name=wanted.name, created=desk.clock.now())
    with _told():
        await desk.accounts.create(made)
    return _account(made)


async def list_accounts(desk: Desk) -> list[Account]:
    with _told():
        return [_account(found) for found in await desk.accounts.list()]


async def create_key(desk: Desk, wanted: NewKey) -> CreatedKey:
    """Raises ApiError 404 for an unknown account, 400 for an unknown tier or a time that is over."""
    now = desk.clock.now()
    if wanted.tier not in desk.policy.tiers:
        known = ", ".join(sorted(desk.policy.tiers))
        raise bad_request(f"There is no tier '{wanted.tier}'; there are: {known}.", param="tier", code="invalid_value")
    if wanted.expires is not None and (wanted.expires.tzinfo is None or wanted.expires <= now):
        raise bad_request("'expires' must be in the future, with its time zone.", param="expires", code="invalid_value")
    with _told():
        account = await _find_account(desk, wanted.account)
        minted = desk.smith.mint(signed=wanted.signed)
        await desk.keys.create(
            KeyRecord(
                key_id=minted.key_id,
                account_id=account.id,
                name=wanted.name,
                tier=wanted.tier,
                models=None if wanted.models is None else frozenset(wanted.models),
                mac=minted.mac,
                mac_version=minted.mac_version,
                created=now,
                expires=wanted.expires,
            )
        )
    return CreatedKey(minted.secret, minted.key_id, wanted.name, account.name, wanted.tier)


async def list_keys(desk: Desk) -> list[Key]:
    with _told():
        names = {account.id: account.name for account in await desk.accounts.list()}
        return [_key(record, names) for record in await desk.keys.list()]


async def revoke_key(desk: Desk, key_id: str) -> Key:
    """Raises ApiError 404. Revoking twice is no error."""
    with _told():
        await desk.keys.revoke(key_id, desk.clock.now())
        # On disk first: who looks the key up from now on finds it revoked.
        desk.revoked(key_id)
        record = await desk.keys.lookup(key_id)
        if record is None:
            raise UnknownKeyError(f"There is no key {key_id}.")
        names = {account.id: account.name for account in await desk.accounts.list()}
    return _key(record, names)


async def usage(desk: Desk, period: str | None = None) -> Usage:
    """The current month if `period` is None. Raises ApiError 400 for one that is not `YYYY-MM`."""
    month = month_of(desk.clock.now()) if period is None else period
    if not _PERIOD.fullmatch(month):
        raise bad_request("'period' is a month, like 2026-11.", param="period", code="invalid_value")
    with _told():
        rows = await desk.ledger.usage(month)
    return Usage(month, [_usage_row(row, desk.policy) for row in rows])


async def check_ledger(desk: Desk) -> list[str]:
    """The ledger's broken invariants, each as a sentence; empty if the books are right."""
    with _told():
        return await desk.ledger.check()


async def _find_account(desk: Desk, name_or_id: str) -> store.Account:
    found = await desk.accounts.find(name_or_id)
    if found is None:
        found = next((account for account in await desk.accounts.list() if account.id == name_or_id), None)
    if found is None:
        raise ApiError(404, f"There is no account '{name_or_id}'.", code="account_not_found", param="account")
    return found


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The stores' errors, as they are told to an operator."""
    try:
        yield
    except AccountExistsError as exc:
        raise ApiError(409, str(exc), code="account_exists", param="name", should_retry=False) from exc
    except UnknownKeyError as exc:
        raise ApiError(404, str(exc), code="key_not_found") from exc
    except StorageError as exc:
        raise unavailable(
            f"The database cannot be used now: {exc}", code="storage_unavailable", retry_after_s=2
        ) from exc


def _account(found: store.Account) -> Account:
    return Account(found.id, found.name, found.created)


def _key(record: KeyRecord, accounts: Mapping[str, str]) -> Key:
    return Key(
        key_id=record.key_id,
        name=record.name,
        account=accounts.get(record.account_id, record.account_id),
        tier=record.tier,
        models=None if record.models is None else sorted(record.models),
        created=record.created,
        expires=record.expires,
        last_used=record.last_used,
        revoked=record.revoked is not None,
        signed=record.mac_version == SIGNED_VERSION,
    )


def _usage_row(row: LedgerRow, policy: Policy) -> UsageRow:
    # A tier that no policy file has any more limits nothing; its keys are refused before that matters.
    tier = policy.tiers.get(row.tier)
    return UsageRow(
        key_id=row.key_id,
        name=row.name,
        account=row.account,
        tier=row.tier,
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.total_tokens,
        reserved_tokens=row.reserved_tokens,
        reserved_requests=row.reserved_requests,
        monthly_tokens=tier.monthly_tokens if tier else None,
        monthly_requests=tier.monthly_requests if tier else None,
    )
