"""What an operator looks at: usage, whether the books are right, and who did what. Nothing here changes anything."""

import heapq
import re
from typing import Final

from proxy.admin.accounts import named
from proxy.admin.desk import Desk, Order, explained
from proxy.admin.records import AuditEvent, AuditQuery, Listing, LogQuery, Nothing, Usage, UsageQuery, UsageRow
from proxy.clock import month_of
from proxy.policy.schema import Policy, Tier
from proxy.store.ledger import UsageRow as LedgerRow
from proxy.store.requestlog import LoggedRequest, Sought
from proxy.store.requestlog import Place as LogPlace
from proxy.store.spread import Spread
from sidecar.wire.errors import bad_request

KEYS_AT_ONCE: Final = 1000
_PERIOD: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


async def usage(desk: Desk, order: Order[UsageQuery]) -> Usage:
    """By key's id. Raises ApiError 400 for a period that is not `YYYY-MM`, 404 for an unknown account."""
    query = order.given
    month = month_of(desk.clock.now()) if query.period is None else query.period
    if not _PERIOD.fullmatch(month):
        raise bad_request("'period' is a month, like 2026-11.", param="period", code="invalid_value")
    account_id = None if query.account is None else (await named(desk, query.account)).id
    with explained():
        rows = await desk.ledger.usage(month, account_id=account_id, after=query.after, limit=query.limit)
    shown = [_usage_row(row, desk.policy) for row in rows]
    return Usage(month, shown, rows[-1].key_id if len(rows) == query.limit else None)


async def quota_shares(desk: Desk) -> list[float]:
    """The share of its month's tokens that each usable key has used or set aside, if it has a limit.

    Raises ApiError 503.
    """
    now = desk.clock.now()
    with explained():
        found = await desk.ledger.spread(month_of(now), now)
    shares: list[float] = []
    for row in found:
        tier = _tier_of(row, desk.policy)
        if tier and tier.monthly_tokens:
            shares.extend([row.tokens / tier.monthly_tokens] * row.keys)
    return shares


async def nearest_quotas(desk: Desk, most: int) -> list[tuple[str, str, float]]:
    """The usable keys that have used or set aside the largest share of their month's tokens: id, tier and share.

    Raises ApiError 503.
    """
    now, after, nearest = desk.clock.now(), None, list[tuple[str, str, float]]()
    while True:
        with explained():
            rows = await desk.ledger.usage(month_of(now), usable_at=now, after=after, limit=KEYS_AT_ONCE)
        for row in rows:
            tier = _tier_of(row, desk.policy)
            if tier and tier.monthly_tokens:
                share = (row.total_tokens + row.reserved_tokens) / tier.monthly_tokens
                nearest.append((row.key_id, row.tier, share))
        nearest = heapq.nlargest(most, nearest, key=lambda key: key[2])
        if len(rows) < KEYS_AT_ONCE:
            return nearest
        after = rows[-1].key_id


async def check_ledger(desk: Desk, _order: Order[Nothing]) -> Listing[str]:
    """The ledger's broken invariants, each as a sentence; empty if the books are right."""
    with explained():
        return Listing(await desk.ledger.check())


async def list_audit(desk: Desk, order: Order[AuditQuery]) -> Listing[AuditEvent]:
    """The newest first."""
    query = order.given
    with explained():
        found = await desk.audit.list(before=query.after, target=query.target, actor=query.actor, limit=query.limit)
    events = [
        AuditEvent(
            id=event.id,
            time=event.time,
            actor=event.actor,
            action=event.action,
            target=event.target,
            request_id=event.request_id,
            address=event.address,
            changes={name: list(pair) for name, pair in event.changes.items()},
        )
        for event in found
    ]
    return Listing(events, found[-1].id if len(found) == query.limit else None)


async def list_log(desk: Desk, order: Order[LogQuery]) -> Listing[LoggedRequest]:
    """The newest first. A part may be shorter than its limit, and still be followed by another.

    Raises ApiError 400 for a time without its zone or an `after` that no part gave, 404 for an unknown account.
    """
    query = order.given
    for name, moment in (("since", query.since), ("until", query.until)):
        if moment is not None and moment.tzinfo is None:
            raise bad_request(f"'{name}' needs its time zone.", param=name, code="invalid_value")
    account_id = None if query.account is None else (await named(desk, query.account)).id
    sought = Sought(query.since, query.until, query.key, account_id, query.model, query.status, query.state)
    with explained():
        found, place = await desk.log.page(sought, after=_place(query.after), limit=query.limit)
    return Listing(found, None if place is None else str(place))


def _place(after: str | None) -> LogPlace | None:
    try:
        return None if after is None else LogPlace.parse(after)
    except (ValueError, OverflowError):
        raise bad_request(
            "'after' is what the part before named as 'next'.", param="after", code="invalid_value"
        ) from None


def _tier_of(row: LedgerRow | Spread, policy: Policy) -> Tier | None:
    """The tier of a key, under its own limits."""
    # A tier that no policy file has any more limits nothing; its keys are refused before that matters.
    tier = policy.tiers.get(row.tier)
    return tier.under(row.limits) if tier else None


def _usage_row(row: LedgerRow, policy: Policy) -> UsageRow:
    own = _tier_of(row, policy)
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
        monthly_tokens=own.monthly_tokens if own else None,
        monthly_requests=own.monthly_requests if own else None,
    )
