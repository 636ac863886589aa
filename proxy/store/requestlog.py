"""The request log: the ledger's rows as an operator looks for them, the newest first. Reads only; no content is there.

A read looks at `SLICE` rows at most, whatever is looked for: on SQLite the next commit waits for it. So a page may have
fewer rows than were asked for, none even, and be followed by another.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, and_, func, or_, select
from typing_extensions import override

from proxy.store.tables import ledger
from proxy.store.writer import Writer

SLICE: Final = 5000
SLICES: Final = 10


class LoggedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are UTC. `ended` of None: it runs still, and the figures below it are not there yet.

    `reason`: how it ended. `rule`: which one refused it. `est_tokens` were, or are, set aside for it.
    """

    request_id: str
    created: dt.datetime
    ended: dt.datetime | None
    state: str
    status: int | None
    key_id: str
    account_id: str
    tier: str
    endpoint: str
    model: str
    upstream: str | None
    stream: bool
    choices: int
    est_tokens: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    duration_ms: int | None
    ttft_ms: int | None
    reason: str | None
    finish_reason: str | None
    error_code: str | None
    rule: str | None
    period: str
    client_request_id: str | None
    trace_id: str | None


FIELDS: Final = LoggedRequest.__struct_fields__
COLUMNS: Final = tuple(ledger.c[name] for name in FIELDS)
NEWEST_FIRST: Final = (ledger.c.created.desc(), ledger.c.request_id.desc())


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the log a page ends: the next one is of what comes before it in time."""

    created: dt.datetime
    request_id: str

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Raises ValueError for what is no place."""
        microseconds, separator, request_id = text.partition("-")
        if not separator:
            raise ValueError(text)
        return cls(EPOCH + dt.timedelta(microseconds=int(microseconds, 16)), request_id)

    @override
    def __str__(self) -> str:
        return f"{(self.created - EPOCH) // dt.timedelta(microseconds=1):x}-{self.request_id}"

    def before(self) -> ColumnElement[bool]:
        # The first term is what an index by time can use.
        same = and_(ledger.c.created == self.created, ledger.c.request_id < self.request_id)
        return and_(ledger.c.created <= self.created, or_(ledger.c.created < self.created, same))


EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Sought:
    """What is looked for; None is all. From `since` on, and before `until`."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    key_id: str | None = None
    account_id: str | None = None
    model: str | None = None
    status: int | None = None
    state: str | None = None

    def span(self) -> list[ColumnElement[bool]]:
        terms = []
        if self.since is not None:
            terms.append(ledger.c.created >= self.since)
        if self.until is not None:
            terms.append(ledger.c.created < self.until)
        return terms

    def filters(self) -> list[ColumnElement[bool]]:
        wanted = {name: getattr(self, name) for name in ("key_id", "account_id", "model", "status", "state")}
        return [ledger.c[name] == value for name, value in wanted.items() if value is not None]


class RequestLog:
    """The log. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def page(
        self, sought: Sought, *, after: Place | None, limit: int
    ) -> tuple[list[LoggedRequest], Place | None]:
        """So many requests at most, and where to go on; None at the end. Raises StorageError."""
        found: list[LoggedRequest] = []
        place = after
        for _ in range(SLICES):
            span = [*sought.span(), *([] if place is None else [place.before()])]
            oldest = await self._oldest(span)
            within = [*span, *sought.filters(), *([] if oldest is None else [ledger.c.created >= oldest])]
            query = select(*COLUMNS).where(*within).order_by(*NEWEST_FIRST).limit(limit + 1 - len(found))
            rows = await self._writer.read(query)
            found += [LoggedRequest(**dict(zip(FIELDS, row, strict=True))) for row in rows]
            if len(found) > limit:
                # The one more only tells that there is one.
                del found[limit:]
                return found, Place(found[-1].created, found[-1].request_id)
            if oldest is None:
                return found, None
            # Nothing sorts before the empty id: all of that moment has been looked at.
            place = Place(oldest, "")
        return found, place

    async def _oldest(self, span: list[ColumnElement[bool]]) -> dt.datetime | None:
        """The time of the last row of a slice; None if no more than that is left."""
        rows = select(ledger.c.created).where(*span).order_by(ledger.c.created.desc()).limit(SLICE).subquery()
        (counted,) = await self._writer.read(
            select(func.count().label("rows"), func.min(rows.c.created).label("oldest"))
        )
        return counted.oldest if counted.rows == SLICE else None
