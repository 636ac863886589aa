"""How the keys stand in a month, all together, for a page that is made often: those that are all alike are one row, as
the unused ones of an account mostly are.
"""

import datetime as dt
from dataclasses import dataclass

import msgspec
from sqlalchemy import ColumnElement, Subquery, Text, cast, func, select

from proxy.policy.schema import Overrides
from proxy.store.tables import account, api_key, quota
from proxy.store.writer import Writer


@dataclass(frozen=True, slots=True)
class Spread:
    """So many keys are alike: of one tier, with the same limits of their own and of their accounts, and each has used
    or set aside as much, and so have all keys of its account together.

    `first` is the id of one of them.
    """

    first: str
    keys: int
    tier: str
    limits: Overrides
    account_limits: Overrides
    requests: int
    tokens: int
    account_requests: int
    account_tokens: int


def usable(now: dt.datetime) -> ColumnElement[bool]:
    """Of keys and their accounts: that a request with the key can be let in."""
    not_yet = api_key.c.expires.is_(None) | (api_key.c.expires > now)
    return api_key.c.revoked.is_(None) & not_yet & account.c.disabled.is_(None)


async def spread(writer: Writer, period: str, now: dt.datetime) -> list[Spread]:
    """Of every usable key. Raises StorageError."""
    sums = _sums(period)
    keys = api_key.join(account, account.c.id == api_key.c.account_id)
    with_own = keys.outerjoin(quota, (quota.c.key_id == api_key.c.id) & (quota.c.period == period))
    joined = with_own.outerjoin(sums, sums.c.account_id == api_key.c.account_id)
    alike = (
        api_key.c.tier,
        # As text: JSON of Postgres has no equality.
        cast(api_key.c.limits, Text),
        cast(account.c.limits, Text),
        func.coalesce(quota.c.settled_requests + quota.c.reserved_requests, 0),
        func.coalesce(quota.c.settled_tokens + quota.c.reserved_tokens, 0),
        func.coalesce(sums.c.requests, 0),
        func.coalesce(sums.c.tokens, 0),
    )
    query = select(func.min(api_key.c.id), func.count(), *alike).select_from(joined).where(usable(now)).group_by(*alike)
    return [
        # Postgres sums whole numbers to decimals.
        Spread(first, number, tier, _limits(own), _limits(of_account), *map(int, used))
        for first, number, tier, own, of_account, *used in map(tuple, await writer.read(query))
    ]


def _sums(period: str) -> Subquery:
    """What all keys of an account, revoked ones too, have used or set aside together."""
    return (
        select(
            api_key.c.account_id,
            func.sum(quota.c.settled_requests + quota.c.reserved_requests).label("requests"),
            func.sum(quota.c.settled_tokens + quota.c.reserved_tokens).label("tokens"),
        )
        .select_from(quota.join(api_key, api_key.c.id == quota.c.key_id))
        .where(quota.c.period == period)
        .group_by(api_key.c.account_id)
        .subquery()
    )


def _limits(text: str | None) -> Overrides:
    return msgspec.json.decode(text or "{}", type=Overrides)
