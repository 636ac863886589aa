"""What an operator looks at: usage, whether the books are right, and who did what. Nothing here changes anything."""

import re
from typing import Final, NamedTuple

from proxy.admin.accounts import named
from proxy.admin.desk import Desk, Order, explained, part
from proxy.admin.records import AuditEvent, AuditQuery, Listing, LogQuery, Nothing, Usage, UsageQuery, UsageRow
from proxy.admission.rules import Own, effective
from proxy.clock import month_of
from proxy.policy.schema import Policy
from proxy.store.ledger import UsageRow as LedgerRow
from proxy.store.requestlog import LoggedRequest, Sought
from proxy.store.requestlog import Place as LogPlace
from proxy.store.spread import Spread
from sidecar.wire.errors import bad_request

PERIOD: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


async def usage(desk: Desk, order: Order[UsageQuery]) -> Usage:
    """By key's id. Raises ApiError 400 for a period that is not `YYYY-MM`, 404 for an unknown account."""
    query = order.given
    month = month_of(desk.clock.now()) if query.period is None else query.period
    if not PERIOD.fullmatch(month):
        raise bad_request("'period' is a month, like 2026-11.", param="period", code="invalid_value")
    account_id = None if query.account is None else (await named(desk, query.account)).id
    with explained():
        rows = await desk.ledger.usage(month, account_id=account_id, after=query.after, limit=query.limit + 1)
    shown, last = part(rows, query.limit)
    return Usage(month, [_usage_row(row, desk.policy) for row in shown], None if last is None else last.key_id)


class Share(NamedTuple):
    """How near so many keys, which are all alike, are to a quota of theirs. `key_id` is the first of them."""

    used: float
    keys: int
    key_id: str
    tier: str


async def quota_shares(desk: Desk) -> list[Share]:
    """How near the usable keys that have a monthly quota are to it: of their own and their account's, of requests and
    tokens, the one of which the largest share is used or set aside.

    Raises ApiError 503.
    """
    now = desk.clock.now()
    with explained():
        found = await desk.ledger.spread(month_of(now), now)
    used = ((row, _share(row, desk.policy)) for row in found)
    return [Share(share, row.keys, row.first, row.tier) for row, share in used if share is not None]


async def check_ledger(desk: Desk, _order: Order[Nothing]) -> Listing[str]:
    """The ledger's broken invariants, each as a sentence; empty if the books are right."""
    with explained():
        return Listing(await desk.ledger.check())


async def list_audit(desk: Desk, order: Order[AuditQuery]) -> Listing[AuditEvent]:
    """The newest first."""
    query = order.given
    with explained():
        found = await desk.audit.list(before=query.after, target=query.target, actor=query.actor, limit=query.limit + 1)
    shown, last = part(found, query.limit)
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
        for event in shown
    ]
    return Listing(events, None if last is None else last.id)


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


def _share(row: Spread, policy: Policy) -> float | None:
    """None where no quota refuses."""
    stated = policy.tiers.get(row.tier)
    # A tier that no policy file has any more limits nothing; its keys are refused before that matters.
    if stated is None:
        return None
    tier = effective(stated, Own(row.limits, row.account_limits))
    used = {
        "monthly_requests": row.requests,
        "monthly_tokens": row.tokens,
        "account_monthly_requests": row.account_requests,
        "account_monthly_tokens": row.account_tokens,
    }
    quotas = {rule: getattr(tier, rule) for rule in used if rule not in tier.shadow}
    return max((used[rule] / most for rule, most in quotas.items() if most), default=None)


def _usage_row(row: LedgerRow, policy: Policy) -> UsageRow:
    tier = policy.tiers.get(row.tier)
    own = tier.under(row.limits) if tier else None
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
