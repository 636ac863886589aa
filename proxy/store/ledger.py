"""The ledger in SQL: every reservation and its one end, and the quota that moves with them, and bounds them.

`posting` decides what a batch of operations changes; this module reads the rows it asks about and writes what it says,
a whole batch in a handful of statements.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

import msgspec
from sqlalchemy import Row, bindparam, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.policy.schema import NO_OVERRIDES, Overrides
from proxy.store import audit, claims, quotas
from proxy.store.claims import Claim
from proxy.store.posting import COUNTERS, Booked, Entry, Operation, Posting, Reserved, Settled, Shrunk, State, Voided
from proxy.store.prepared import Prepared
from proxy.store.spread import Spread, spread
from proxy.store.standing import UNLIMITED, Monthly, Standing
from proxy.store.tables import account, api_key, boot, ledger, quota
from proxy.store.writer import Refusal, Writer

ENTRY_COLUMNS: Final = Entry.__struct_fields__
ENDING_COLUMNS: Final = tuple(name for name in Settled.__struct_fields__ if name not in {"request_id", "forced"})

# A Voided has no tokens and no first byte: those columns get their zero, or nothing.
NOTHING_USED: Final = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
EMPTY: Final = {**NOTHING_USED, "ttft_ms": None, "finish_reason": ""}
# The same columns of a row that is open.
OPEN_COLUMNS: Final = {**dict.fromkeys(ENDING_COLUMNS), **NOTHING_USED, "state": State.RESERVED}

# Of a record the values of those columns, in their order.
_of_entry: Final = attrgetter(*ENTRY_COLUMNS)
_of_settled: Final = attrgetter(*ENDING_COLUMNS)

# A whole answer that is sooner than this is written with its reservation, in one commit. Nobody waits meanwhile: it is
# not told before both are on disk.
ENDS_SOON_S: Final = 0.002
NOBODY_WAITS_S: Final = 0.05

# What others write, and how much of it has room.
OUTSIDE: Final = {"client_request_id": 512, "model": 200, "finish_reason": 40, "error_code": 100}

# Postgres locks the rows it finds; SQLite has no such clause and is given none, its write lock covers everything.
FIND: Final = Prepared(
    select(ledger.c.request_id, *(ledger.c[field.name] for field in fields(Booked)))
    .where(ledger.c.request_id.in_(bindparam("ids", expanding=True)))
    .order_by(ledger.c.request_id)
    .with_for_update()
)
IS_OPEN: Final = (ledger.c.request_id == bindparam("of")) & (ledger.c.state == State.RESERVED)
INSERT: Final = Prepared(insert(ledger), columns=("boot_id", "state", *ENTRY_COLUMNS, *ENDING_COLUMNS))
SHRINK: Final = Prepared(update(ledger).where(IS_OPEN).values(est_tokens=bindparam("to")))
# `to` is the last estimate, if that changes too.
END: Final = Prepared(
    update(ledger)
    .where(IS_OPEN)
    .values(est_tokens=func.coalesce(bindparam("to", type_=ledger.c.est_tokens.type), ledger.c.est_tokens))
    .values({name: bindparam(name) for name in ("state", *ENDING_COLUMNS)})
)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a key used in a period. `total_tokens` is prompt plus completion; the reserved ones come on top.

    `limits`: the key's own.
    """

    key_id: str
    name: str
    account: str
    tier: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int
    reserved_requests: int
    reserved_tokens: int
    limits: Overrides = NO_OVERRIDES


class Ledger:
    """The books, written on behalf of one boot of the proxy. Stateless but for the writer's queue.

    Each operation may be submitted again, or too late: a row ends once. The futures are done when it is on disk, and
    may be dropped. Reservations fail with StorageError; ends are tried until they succeed, or the writer is left. An
    end whose reservation never reached the disk ends nothing.
    """

    def __init__(self, writer: Writer, boot_id: str) -> None:
        self._writer = writer
        self._boot_id = boot_id

    def reserve(
        self, entry: Entry, claimed: tuple[Claim, ...] = (), limits: Monthly = UNLIMITED
    ) -> asyncio.Future[None]:
        """Fails with ClaimTakenError, too, if another request has one of its claims, and with QuotaExceededError if it
        does not fit its limits, whichever process has used them up. Then there is no reservation.
        """
        patience_s = 0.0 if entry.stream or claimed else ENDS_SOON_S
        return self._writer.submit(_post, Reserved(entry, self._boot_id, claimed, limits), patience_s=patience_s)

    def shrink(self, request_id: str, est_tokens: int) -> asyncio.Future[None]:
        """The request needs no more than this; a greater number changes nothing. It may take a little: nobody waits."""
        return self._writer.submit(_post, Shrunk(request_id, est_tokens), patience_s=NOBODY_WAITS_S)

    def settle(self, settled: Settled) -> asyncio.Future[None]:
        return self._writer.submit(_post, settled, retained=True)

    def void(self, voided: Voided) -> asyncio.Future[None]:
        return self._writer.submit(_post, voided, retained=True)

    async def standing(self, key_id: str, period: str) -> Standing:
        """As of the last commit."""
        columns = [quota.c[field.name] for field in fields(Standing)]
        found = await self._writer.read(select(*columns).where(quota.c.key_id == key_id, quota.c.period == period))
        return Standing(*found[0]) if found else Standing()

    async def account_standing(self, account_id: str, period: str) -> Standing:
        """All keys of the account together, revoked ones too, as of the last commit."""
        sums = [func.coalesce(func.sum(quota.c[field.name]), 0) for field in fields(Standing)]
        of_account = (api_key.c.account_id == account_id) & (quota.c.period == period)
        query = select(*sums).select_from(quota.join(api_key, api_key.c.id == quota.c.key_id)).where(of_account)
        # Postgres sums whole numbers to decimals.
        return Standing(*map(int, (await self._writer.read(query))[0]))

    async def open_rows(self) -> list[Entry]:
        """The reservations that are open and nobody's, oldest first: no other boot lives that they belong to, and this
        one has become the keeper of those that died.
        """
        columns = [ledger.c[name] for name in ENTRY_COLUMNS]
        kept_here = boot.c.keeper.is_not_distinct_from(self._boot_id)
        living = exists().where(boot.c.id == ledger.c.boot_id, boot.c.ended.is_(None), ~kept_here)
        orphans = select(*columns).where(ledger.c.state == State.RESERVED, ledger.c.boot_id != self._boot_id, ~living)
        return [Entry(*tuple(row)) for row in await self._writer.read(orphans.order_by(ledger.c.created))]

    async def usage(
        self,
        period: str,
        *,
        account_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[UsageRow]:
        """Every key, or those of an account, with what it used in the period.

        By account and name; with a limit by id, from behind the id `after` on.
        """
        counters = [func.coalesce(quota.c[name], 0).label(name) for name in COUNTERS]
        keys = api_key.join(account, account.c.id == api_key.c.account_id)
        joined = keys.outerjoin(quota, (quota.c.key_id == api_key.c.id) & (quota.c.period == period))
        names = [api_key.c.id, api_key.c.name, account.c.name.label("account"), api_key.c.tier, api_key.c.limits]
        query = select(*names, *counters).select_from(joined)
        if limit is None:
            query = query.order_by(account.c.name, api_key.c.name, api_key.c.id)
        else:
            query = query.order_by(api_key.c.id).limit(limit)
        if account_id is not None:
            query = query.where(api_key.c.account_id == account_id)
        if after is not None:
            query = query.where(api_key.c.id > after)
        return [_usage_row(row) for row in await self._writer.read(query)]

    async def spread(self, period: str, now: dt.datetime) -> list[Spread]:
        """How all usable keys stand in the period, by tier and limits."""
        return await spread(self._writer, period, now)

    async def check(self) -> list[str]:
        """What is wrong with the books, in words; empty when the invariants hold."""
        return [problem for law in audit.LAWS for problem in law.broken_by(await self._writer.read(law.query))]


async def _post(connection: AsyncConnection, operations: Sequence[Operation]) -> list[Refusal]:
    """Apply a batch, and say which of it is refused. Runs in the writer's transaction."""
    ids = list({operation.request_id for operation in operations})
    found = await FIND.on(connection, {"ids": ids})
    rows = {request_id: Booked(*rest) for request_id, *rest in found}
    new = [
        operation for operation in operations if isinstance(operation, Reserved) and operation.request_id not in rows
    ]
    taken = await claims.take(connection, new)
    if new:
        await quotas.opened(connection, list({(reserved.entry.key_id, reserved.entry.period) for reserved in new}))
    posting = Posting(rows, *await quotas.standings(connection, new, rows), taken)
    for operation in operations:
        posting.post(operation)
    if posting.refused:
        await claims.give_back(connection, [reserved for reserved in new if reserved.request_id in posting.refused])
    await _write_rows(connection, posting)
    if posting.moves:
        await quotas.moved(connection, posting.moves)
    return [
        Refusal(place, posting.refused[operation.request_id])
        for place, operation in enumerate(operations)
        if isinstance(operation, Reserved) and operation.request_id in posting.refused
    ]


async def _write_rows(connection: AsyncConnection, posting: Posting) -> None:
    """A row is written once in a batch, as it is in the end."""
    ends = {end.request_id: end for end in posting.ended}
    estimates = dict(posting.shrunk)
    if posting.reserved:
        rows = [
            _inserted(reserved, ends.pop(reserved.request_id, None), estimates.pop(reserved.request_id, None))
            for reserved in posting.reserved
        ]
        await INSERT.on_each(connection, rows)
    if ends:
        rows = [_fitting({"of": of, "to": estimates.pop(of, None), **_ending(end)}) for of, end in ends.items()]
        await END.on_each(connection, rows)
    if estimates:
        await SHRINK.on_each(connection, [{"of": of, "to": to} for of, to in estimates.items()])


def _inserted(reserved: Reserved, end: Settled | Voided | None, est_tokens: int | None) -> dict[str, object]:
    row: dict[str, object] = dict(zip(ENTRY_COLUMNS, _of_entry(reserved.entry), strict=True))
    row["boot_id"] = reserved.boot_id
    if est_tokens is not None:
        row["est_tokens"] = est_tokens
    row |= OPEN_COLUMNS if end is None else _ending(end)
    return _fitting(row)


def _ending(end: Settled | Voided) -> dict[str, object]:
    if isinstance(end, Settled):
        row: dict[str, object] = dict(zip(ENDING_COLUMNS, _of_settled(end), strict=True))
    else:
        row = {name: getattr(end, name, EMPTY.get(name)) for name in ENDING_COLUMNS}
    row["state"] = end.state
    return row


def _fitting(row: dict[str, object]) -> dict[str, object]:
    """Words of clients and of foreign upstreams, as the columns take them: Postgres would refuse the whole row."""
    for name, length in OUTSIDE.items():
        if isinstance(word := row.get(name), str):
            row[name] = word.replace("\0", "")[:length]
    return row


def _usage_row(row: Row[Any]) -> UsageRow:
    return UsageRow(
        key_id=row.id,
        name=row.name,
        account=row.account,
        tier=row.tier,
        requests=row.settled_requests,
        prompt_tokens=row.settled_prompt_tokens,
        cached_tokens=row.settled_cached_tokens,
        completion_tokens=row.settled_tokens - row.settled_prompt_tokens,
        total_tokens=row.settled_tokens,
        reserved_requests=row.reserved_requests,
        reserved_tokens=row.reserved_tokens,
        limits=msgspec.convert(row.limits or {}, Overrides),
    )
