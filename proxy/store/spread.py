"""How the keys stand in a month, all together: few rows however many keys there are, for a page that is made often."""

import datetime as dt
from dataclasses import dataclass

import msgspec
from sqlalchemy import ColumnElement, Text, cast, func, select

from proxy.policy.schema import Overrides
from proxy.store.tables import account, api_key, quota
from proxy.store.writer import Writer


@dataclass(frozen=True, slots=True)
class Spread:
    """So many keys of a tier, with the same limits of their own, have used or set aside so many tokens."""

    tier: str
    limits: Overrides
    tokens: int
    keys: int


def usable(now: dt.datetime) -> ColumnElement[bool]:
    """Of keys and their accounts: that a request with the key can be let in."""
    not_yet = api_key.c.expires.is_(None) | (api_key.c.expires > now)
    return api_key.c.revoked.is_(None) & not_yet & account.c.disabled.is_(None)


async def spread(writer: Writer, period: str, now: dt.datetime) -> list[Spread]:
    """Of every usable key. Raises StorageError."""
    keys = api_key.join(account, account.c.id == api_key.c.account_id)
    joined = keys.outerjoin(quota, (quota.c.key_id == api_key.c.id) & (quota.c.period == period))
    # As text: JSON of Postgres has no equality.
    limits = cast(api_key.c.limits, Text)
    tokens = func.coalesce(quota.c.settled_tokens + quota.c.reserved_tokens, 0)
    alike = [api_key.c.tier, limits.label("own"), tokens.label("tokens")]
    query = (
        select(*alike, func.count().label("alike"))
        .select_from(joined)
        .where(usable(now))
        .group_by(api_key.c.tier, limits, tokens)
    )
    return [
        Spread(row.tier, msgspec.json.decode(row.own or "{}", type=Overrides), row.tokens, row.alike)
        for row in await writer.read(query)
    ]
