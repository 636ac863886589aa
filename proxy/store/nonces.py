"""Used nonces in the database: looked for before a request is let in, written with its reservation, or on their own.

What is forgotten leaves a trace: a signature as old as the latest one whose nonce was forgotten counts as seen, so that
a clock that goes back does not open the past again (GUARDS F9).
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import claims
from proxy.store.claims import Nonce
from proxy.store.tables import nonce
from proxy.store.writer import Refusal, Writer

FLOOR: Final = "floor"
# So many at once, that others need not wait long for the database.
FORGOTTEN_AT_ONCE: Final = 512
EXPIRED: Final = (
    select(nonce.c.id, nonce.c.expires, nonce.c.signed)
    .where(nonce.c.expires < bindparam("before"), nonce.c.id != FLOOR)
    .order_by(nonce.c.expires)
    .limit(FORGOTTEN_AT_ONCE)
)
FORGET: Final = delete(nonce).where(nonce.c.id.in_(bindparam("ids", expanding=True)))
RAISE: Final = (
    update(nonce).where(nonce.c.id == FLOOR, nonce.c.expires < bindparam("to")).values(expires=bindparam("to"))
)
COUNT: Final = select(func.count()).select_from(nonce).where(nonce.c.id != FLOOR)


@dataclass(frozen=True, slots=True)
class Spent:
    """A nonce that a request uses which is in no ledger."""

    request_id: str
    claims: tuple[Nonce, ...]


@dataclass(frozen=True, slots=True)
class _Forgotten:
    """Expired nonces, and when the latest signed one of them did."""

    ids: list[str]
    latest: dt.datetime | None


class Nonces:
    """The table. Stateless. `in_reservation`: its nonces travel with the reservation, if there is one."""

    in_reservation: Final = True

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def seen(self, new: Nonce) -> bool:
        """Whether it was used, or may have been. Raises StorageError."""
        found = await self._writer.read(claims.NONCES.find.params(ids=[new.id, FLOOR]))
        return any(
            new.signed and new.expires <= row.expires if row.id == FLOOR else claims.nonce_holds(row, new)
            for row in found
        )

    async def spend(self, new: Nonce, request_id: str) -> None:
        """Returns when it is on disk. Raises ClaimTakenError or StorageError."""
        await self._writer.submit(_spend, Spent(request_id, (new,)))

    async def release(self, new: Nonce) -> None:
        """The ledger tells that nothing came of a request."""

    async def forget(self, before: dt.datetime) -> None:
        """Delete what expired before that moment. Raises StorageError."""
        while rows := await self._writer.read(EXPIRED.params(before=before)):
            latest = max((row.expires for row in rows if row.signed), default=None)
            await self._writer.submit(_forget, _Forgotten([row.id for row in rows], latest))

    async def count(self) -> int:
        """Raises StorageError."""
        return int((await self._writer.read(COUNT))[0][0])


async def _spend(connection: AsyncConnection, spent: Sequence[Spent]) -> list[Refusal]:
    taken = await claims.take(connection, spent)
    # A request uses one nonce, so there is nothing to give back of one that is refused.
    return [Refusal(place, taken[one.request_id]) for place, one in enumerate(spent) if one.request_id in taken]


async def _forget(connection: AsyncConnection, forgotten: Sequence[_Forgotten]) -> None:
    for one in forgotten:
        if one.latest is not None:
            floor = {"id": FLOOR, "request_id": "", "expires": one.latest, "signed": True}
            await connection.execute(claims.NONCES.add, [floor])
            await connection.execute(RAISE, {"to": one.latest})
        await connection.execute(FORGET, {"ids": one.ids})
