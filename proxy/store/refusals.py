"""Requests that were refused, as rows of the ledger: for the request log, and to try another policy on a day.

They move no quota and end nothing. They are worth less than what runs: where the writer is behind they are left out.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.posting import Entry, State
from proxy.store.tables import ledger
from proxy.store.writer import MAX_QUEUE, Writer

# Half of what the writer takes is for what runs.
MOST_BEHIND: Final = MAX_QUEUE // 2
REASON: Final = "refused"


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that a rule refused. The entry's `est_tokens` are what it would have reserved, 0 if nobody knows."""

    entry: Entry
    rule: str
    status: int
    error_code: str | None
    ended: dt.datetime
    duration_ms: int


class Refusals:
    """The refused rows, written on behalf of one boot of the proxy. Stateless but for the writer's queue."""

    def __init__(self, writer: Writer, boot_id: str) -> None:
        self._writer = writer
        self._boot_id = boot_id

    def put(self, refused: Refused) -> bool:
        """Queue a row. Whether it is; it may still be lost with the storage, and the writer counts that."""
        if self._writer.depth >= MOST_BEHIND:
            return False
        _ = self._writer.submit(_write, _row(refused, self._boot_id))
        return True


async def _write(connection: AsyncConnection, rows: Sequence[dict[str, object]]) -> None:
    """Runs in the writer's transaction. A row that is there already, after a commit that nobody heard of, stays."""
    ids = [row["request_id"] for row in rows]
    known = await connection.execute(select(ledger.c.request_id).where(ledger.c.request_id.in_(ids)))
    there = set(known.scalars())
    # The last of equal ids wins; there are none but by such a commit.
    if new := list({row["request_id"]: row for row in rows if row["request_id"] not in there}.values()):
        await connection.execute(insert(ledger), new)


def _row(refused: Refused, boot_id: str) -> dict[str, object]:
    row: dict[str, object] = msgspec.structs.asdict(refused.entry)
    nothing = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "finish_reason": ""}
    return (
        row
        | nothing
        | {
            "boot_id": boot_id,
            "state": State.REFUSED,
            "rule": refused.rule,
            "status": refused.status,
            "reason": REASON,
            "error_code": refused.error_code,
            "ended": refused.ended,
            "duration_ms": refused.duration_ms,
        }
    )
