"""The laws that the books obey at every commit, each a query for what breaks it. `doctor` and the tests ask.

Not for the hot path: a law may read the whole ledger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, case, func, or_, select, union_all

from proxy.exchange import Ending
from proxy.store.posting import COUNTERS, State
from proxy.store.tables import boot, kept_from, ledger, quota

MAX_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Law:
    """`says` is what is wrong with each row that `query` finds."""

    says: str
    query: Select[Any]

    def broken_by(self, rows: Sequence[Row[Any]]) -> list[str]:
        problems = [self.says.format(row=row) for row in rows[:MAX_SHOWN]]
        more = len(rows) - MAX_SHOWN
        return [*problems, f"… and {more} more like the last"] if more > 0 else problems


def _sums_differ() -> Select[Any]:
    """Keys and periods whose counters are not the sums of their ledger rows, by how much."""
    is_open = ledger.c.state == State.RESERVED
    is_paid = ledger.c.state.in_((State.SETTLED, State.FORCED))
    summed = {
        "settled_tokens": case((is_paid, ledger.c.prompt_tokens + ledger.c.completion_tokens), else_=0),
        "reserved_tokens": case((is_open, ledger.c.est_tokens), else_=0),
        "settled_requests": case((is_paid, 1), else_=0),
        "reserved_requests": case((is_open, 1), else_=0),
        "settled_prompt_tokens": case((is_paid, ledger.c.prompt_tokens), else_=0),
        "settled_cached_tokens": case((is_paid, ledger.c.cached_tokens), else_=0),
    }
    sides = union_all(
        select(quota.c.key_id, quota.c.period, *(quota.c[name] for name in COUNTERS)),
        select(ledger.c.key_id, ledger.c.period, *((-summed[name]).label(name) for name in COUNTERS)),
    ).subquery()
    off_by = {name: func.sum(sides.c[name]) for name in COUNTERS}
    # Of earlier months rows have been deleted, and the totals stay.
    whole = sides.c.period >= select(kept_from.c.period).scalar_subquery()
    return (
        select(sides.c.key_id, sides.c.period, *(total.label(name) for name, total in off_by.items()))
        .where(whole)
        .group_by(sides.c.key_id, sides.c.period)
        .having(or_(*(total != 0 for total in off_by.values())))
        .order_by(sides.c.key_id, sides.c.period)
    )


def _rows_that(breaks: ColumnElement[bool]) -> Select[Any]:
    return select(ledger.c.request_id, ledger.c.state).where(breaks).order_by(ledger.c.request_id)


def _left_open() -> Select[Any]:
    """Open rows of a boot that ended in order: it should have ended them first."""
    return (
        select(ledger.c.request_id, ledger.c.boot_id)
        .join_from(ledger, boot, boot.c.id == ledger.c.boot_id)
        .where(ledger.c.state == State.RESERVED, boot.c.ended.is_not(None))
        .order_by(ledger.c.request_id)
    )


CHARGED: Final = ledger.c.prompt_tokens + ledger.c.completion_tokens
LAWS: Final = (
    Law(
        "{row.key_id} in {row.period}: the quota is not the sum of its ledger rows "
        "(off by {row.settled_tokens} settled and {row.reserved_tokens} reserved tokens, "
        "{row.settled_requests} settled and {row.reserved_requests} reserved requests)",
        _sums_differ(),
    ),
    Law(
        "{row.request_id}: state {row.state} does not agree with its time of ending",
        _rows_that((ledger.c.state == State.RESERVED) != ledger.c.ended.is_(None)),
    ),
    Law(
        "{row.request_id}: state {row.state}, and yet it is charged",
        _rows_that(ledger.c.state.in_((State.RESERVED, State.VOID, State.REFUSED)) & (CHARGED != 0)),
    ),
    Law(
        "{row.request_id}: charged more than was reserved, or more cached than prompt",
        _rows_that((ledger.c.est_tokens < CHARGED) | (ledger.c.cached_tokens > ledger.c.prompt_tokens)),
    ),
    Law(
        "{row.request_id}: answered completely, and yet not settled with status 200 but {row.state}",
        _rows_that(
            (ledger.c.reason == Ending.COMPLETE) & ((ledger.c.state != State.SETTLED) | (ledger.c.status != 200))
        ),
    ),
    Law(
        "{row.request_id}: state {row.state} does not agree with the rule that refused it",
        _rows_that((ledger.c.state == State.REFUSED) != ledger.c.rule.is_not(None)),
    ),
    Law("{row.request_id}: left open by {row.boot_id}, which ended in order", _left_open()),
)
