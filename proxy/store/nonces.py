"""Used nonces in the database: looked for before a request is let in, written with its reservation, or on their own.

What is forgotten leaves a trace: a signature no younger than the latest forgotten nonce is as good as seen, so that a
clock that goes back does not open the past again (GUARDS F9).
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
_FORGOTTEN: Final = (nonce.c.expires < bindparam("before")) & (nonce.c.id != FLOOR)
LATEST: Final = select(func.max(nonce.c.expires)).where(_FORGOTTEN)
FORGET: Final = delete(nonce).where(_FORGOTTEN)
RAISE: Final = (
    update(nonce).where(nonce.c.id == FLOOR, nonce.c.expires < bindparam("to")).values(expires=bindparam("to"))
)
COUNT: Final = select(func.count()).select_from(nonce).where(nonce.c.id != FLOOR)


@dataclass(frozen=True, slots=True)
class Spent:
    """A nonce that a request uses which is in no ledger."""

    request_id: str
    claims: tuple[Nonce, ...]


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
        await self._writer.submit(_forget, before)

    async def count(self) -> int:
        """Raises StorageError."""
        return int((await self._writer.read(COUNT))[0][0])


async def _spend(connection: AsyncConnection, spent: Sequence[Spent]) -> list[Refusal]:
    taken = await claims.take(connection, spent)
    # A request uses one nonce, so there is nothing to give back of one that is refused.
    return [Refusal(place, taken[one.request_id]) for place, one in enumerate(spent) if one.request_id in taken]


async def _forget(connection: AsyncConnection, moments: Sequence[dt.datetime]) -> None:
    before = {"before": max(moments)}
    latest = (await connection.execute(LATEST, before)).scalar_one()
    if latest is None:
        return
    floor = {"id": FLOOR, "request_id": "", "expires": latest, "signed": True}
    await connection.execute(claims.NONCES.add, [floor])
    await connection.execute(RAISE, {"to": latest})
    await connection.execute(FORGET, before)
