"""What a request claims for itself when it is let in, and no other request may have: a nonce, an idempotency key.

A claim is a row, written in the transaction of its request's reservation, so that there is never one without the other.
Whether it still holds is read off the ledger: there is no state to keep in step, and nothing to mend after a crash.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import Row, bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import ledger, nonce

VOID: Final = "void"


@dataclass(frozen=True, slots=True)
class Nonce:
    """A word that a key may use once, from `made` on. `signed`: whatever comes of the request that used it; else it may
    be used again if nothing ran.
    """

    key_id: str
    value: str
    made: dt.datetime
    expires: dt.datetime
    signed: bool = False

    @property
    def id(self) -> str:
        return f"{self.key_id}:{self.value}"


Claim = Nonce


class ClaimTakenError(Exception):
    """Another request has it. The same will not work later, unless the claim is given up."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"another request has claimed the same {type(claim).__name__.lower()}")
        self.claim = claim


class Claimant(Protocol):
    """A request and what it claims; see `proxy.store.posting.Reserved`."""

    @property
    def request_id(self) -> str: ...
    @property
    def claims(self) -> Sequence[Claim]: ...


FIND_NONCES: Final = (
    select(nonce.c.id, nonce.c.request_id, nonce.c.expires, nonce.c.signed, ledger.c.state)
    .select_from(nonce.outerjoin(ledger, ledger.c.request_id == nonce.c.request_id))
    .where(nonce.c.id.in_(bindparam("ids", expanding=True)))
)
DROP_NONCES: Final = delete(nonce).where(nonce.c.id.in_(bindparam("ids", expanding=True)))


async def take(connection: AsyncConnection, claimants: Sequence[Claimant]) -> None:
    """Write the claims of new requests. Raises ClaimTakenError. Runs in the writer's transaction."""
    claimed: dict[str, tuple[Claim, str]] = {}
    for claimant in claimants:
        for claim in claimant.claims:
            if claimed.setdefault(claim.id, (claim, claimant.request_id))[1] != claimant.request_id:
                # The writer then tries them one by one, and the first of them gets it.
                raise ClaimTakenError(claim)
    if not claimed:
        return
    ids = sorted(claimed)
    found = (await connection.execute(FIND_NONCES, {"ids": ids})).all()
    for row in found:
        claim, request_id = claimed[row.id]
        if row.request_id != request_id and holds(row, claim):
            raise ClaimTakenError(claim)
    if found:
        await connection.execute(DROP_NONCES, {"ids": [row.id for row in found]})
    # Sorted, so that two writers on Postgres cannot wait for each other.
    await connection.execute(insert(nonce), [_nonce_row(*claimed[claim_id]) for claim_id in ids])


def holds(row: Row[*tuple[Any, ...]], new: Nonce) -> bool:
    """Whether a row that is there stands in the way of a new claim of the same nonce."""
    return bool(row.signed or new.signed or (row.state != VOID and row.expires > new.made))


def _nonce_row(claim: Nonce, request_id: str) -> dict[str, object]:
    return {"id": claim.id, "request_id": request_id, "expires": claim.expires, "signed": claim.signed}
