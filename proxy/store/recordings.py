"""What the ledger remembers of a stretch of time, in numbers: who asked for how much, and when. No content is there.

For trying another policy on it (`proxy.simulation`). Reads only.
"""

import datetime as dt
from typing import Final

import msgspec
from sqlalchemy import and_, func, or_, select

from proxy.clock import month_of
from proxy.store.posting import State
from proxy.store.tables import ledger
from proxy.store.writer import Writer

# A row of a request that was let in later than it is looked at is open, and tells nothing of its end.
PAID: Final = (State.SETTLED, State.FORCED)


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `ended` of None: it runs still. `rule`: which one refused it.

    What it asked, from `asked_output_tokens` on, is as in `proxy.store.posting.Entry`.
    """

    request_id: str
    state: str
    key_id: str
    account_id: str
    tier: str
    endpoint: str
    model: str
    stream: bool
    choices: int
    created: dt.datetime
    ended: dt.datetime | None
    est_tokens: int
    prompt_tokens: int
    completion_tokens: int
    asked_output_tokens: int | None
    bound_prompt_tokens: int | None
    max_context: int | None
    prompts: int | None
    rule: str | None = None


class UsedBefore(msgspec.Struct, frozen=True):
    """What a key had used of a month before a moment of it."""

    key_id: str
    account_id: str
    tokens: int
    requests: int


FIELDS: Final = Recorded.__struct_fields__
COLUMNS: Final = tuple(ledger.c[name] for name in FIELDS)


class Recordings:
    """The ledger, for looking back. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def page(
        self, since: dt.datetime, until: dt.datetime, *, after: Recorded | None, limit: int, key_id: str | None
    ) -> list[Recorded]:
        """The requests that came from `since` to before `until`, in order, those behind `after` if there is one."""
        query = select(*COLUMNS).where(ledger.c.created >= since, ledger.c.created < until)
        if after is not None:
            later = ledger.c.created > after.created
            same = and_(ledger.c.created == after.created, ledger.c.request_id > after.request_id)
            query = query.where(or_(later, same))
        if key_id is not None:
            query = query.where(ledger.c.key_id == key_id)
        query = query.order_by(ledger.c.created, ledger.c.request_id).limit(limit)
        return [Recorded(**dict(zip(FIELDS, row, strict=True))) for row in await self._writer.read(query)]

    async def used_before(self, moment: dt.datetime) -> list[UsedBefore]:
        """What each key used in the moment's month before it, by requests that came before it."""
        tokens = func.sum(ledger.c.prompt_tokens + ledger.c.completion_tokens).label("tokens")
        query = (
            select(ledger.c.key_id, ledger.c.account_id, tokens, func.count().label("requests"))
            .where(ledger.c.period == month_of(moment), ledger.c.created < moment, ledger.c.state.in_(PAID))
            .group_by(ledger.c.key_id, ledger.c.account_id)
            .order_by(ledger.c.key_id)
        )
        found = await self._writer.read(query)
        return [UsedBefore(row.key_id, row.account_id, int(row.tokens), row.requests) for row in found]
