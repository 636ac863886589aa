"""The quota rows in SQL: locked and read before a reservation is decided, and moved after. Decides nothing.

The order in which rows are locked is one for all: the ledger's, then accounts, then quotas, each sorted. Two processes
on one Postgres cannot wait for each other so.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Final

from sqlalchemy import BindParameter, bindparam, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.posting import COUNTERS, At, Booked, Reserved
from proxy.store.prepared import Prepared
from proxy.store.standing import Standing
from proxy.store.tables import account, api_key, quota

# The same words in SQLite and in Postgres, for which SQLAlchemy has two constructs.
OPEN: Final = Prepared(
    text(
        f"INSERT INTO quota (key_id, period, {', '.join(COUNTERS)}) "  # noqa: S608  our own column names
        f"VALUES (:of_key, :of_period, {', '.join('0' for _ in COUNTERS)}) ON CONFLICT (key_id, period) DO NOTHING"
    )
)
MOVE: Final = Prepared(
    update(quota)
    .where(quota.c.key_id == bindparam("of_key"), quota.c.period == bindparam("of_period"))
    .values({name: quota.c[name] + bindparam(name) for name in COUNTERS})
)
_COLUMNS: Final = [quota.c[field.name] for field in fields(Standing)]
_KEYS: Final = quota.c.key_id.in_(bindparam("keys", expanding=True))
_PERIODS: Final = quota.c.period.in_(bindparam("periods", expanding=True))
# Postgres locks what it finds; SQLite has no such clause and is given none, its write lock covers everything.
LOCK_KEYS: Final = Prepared(
    select(quota.c.key_id, quota.c.period, *_COLUMNS)
    .where(_KEYS, _PERIODS)
    .order_by(quota.c.key_id, quota.c.period)
    .with_for_update()
)
_ACCOUNTS: Final[BindParameter[str]] = bindparam("accounts", expanding=True)
# Only against each other: what refers to an account goes on. On Postgres only, for the reason above.
LOCK_ACCOUNTS: Final = Prepared(
    select(account.c.id).where(account.c.id.in_(_ACCOUNTS)).order_by(account.c.id).with_for_update(key_share=True)
)
SUM_ACCOUNTS: Final = Prepared(
    select(api_key.c.account_id, quota.c.period, *(func.sum(column) for column in _COLUMNS))
    .select_from(quota.join(api_key, api_key.c.id == quota.c.key_id))
    .where(api_key.c.account_id.in_(_ACCOUNTS), _PERIODS)
    .group_by(api_key.c.account_id, quota.c.period)
)


async def opened(connection: AsyncConnection, lines: Collection[At]) -> None:
    """Make the rows that are not there yet."""
    await OPEN.on_each(connection, [{"of_key": key_id, "of_period": period} for key_id, period in sorted(lines)])


async def standings(
    connection: AsyncConnection, new: Sequence[Reserved], rows: Mapping[str, Booked]
) -> tuple[dict[At, Standing], dict[At, Standing]]:
    """Where keys and accounts stand, as nobody else can change it before this transaction ends.

    `rows` are the ledger's that will move quotas as well: theirs are locked with the others, in one order.
    """
    limited = [reserved for reserved in new if reserved.limits.any]
    if not limited:
        return {}, {}
    accounts: dict[At, Standing] = {}
    shared = sorted({reserved.entry.account_id for reserved in limited if reserved.limits.any_of_account})
    if shared and connection.dialect.name != "sqlite":
        await LOCK_ACCOUNTS.on(connection, {"accounts": shared})
    keys = {*(reserved.entry.key_id for reserved in new), *(row.key_id for row in rows.values())}
    periods = {*(reserved.entry.period for reserved in new), *(row.period for row in rows.values())}
    found = await LOCK_KEYS.on(connection, {"keys": sorted(keys), "periods": sorted(periods)})
    lines = {(key_id, period): Standing(*rest) for key_id, period, *rest in found}
    if shared:
        summed = await SUM_ACCOUNTS.on(connection, {"accounts": shared, "periods": sorted(periods)})
        # Postgres sums whole numbers to decimals.
        accounts = {(account_id, period): Standing(*map(int, rest)) for account_id, period, *rest in summed}
    return lines, accounts


async def moved(connection: AsyncConnection, moves: Mapping[At, Counter[str]]) -> None:
    rows = [
        {"of_key": key_id, "of_period": period} | {name: counter[name] for name in COUNTERS}
        for (key_id, period), counter in sorted(moves.items())
    ]
    await MOVE.on_each(connection, rows)
