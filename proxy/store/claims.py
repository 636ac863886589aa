"""What a request claims for itself when it is let in, and no other request may have: a nonce, an idempotency key.

A claim is a row, written in the transaction of its request's reservation, so that there is never one without the other.
Whether it still holds is read off the ledger: there is no state to keep in step, and nothing to mend after a crash.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import Delete, Row, Select, Table, bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import idempotency, ledger, nonce

Found = Row[*tuple[Any, ...]]
# Of the ledger; see `proxy.store.posting.State` and `proxy.exchange.Ending`.
VOID: Final = "void"
RESERVED: Final = "reserved"
COMPLETE: Final = "complete"


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


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A word under which one request runs, by the digest of it and its scope; `fingerprint` is the request's digest."""

    id: str
    fingerprint: bytes = field(repr=False)
    made: dt.datetime
    expires: dt.datetime


Claim = Nonce | IdempotencyKey


class ClaimTakenError(Exception):
    """Another request has it. The same will not work later, unless the claim is given up."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"another request has claimed the same {type(claim).__name__}")
        self.claim = claim


class Claimant(Protocol):
    """A request and what it claims; see `proxy.store.posting.Reserved`."""

    @property
    def request_id(self) -> str: ...
    @property
    def claims(self) -> Sequence[Claim]: ...


def nonce_holds(row: Found, new: Nonce) -> bool:
    """Whether a row that is there stands in the way of a new claim of the same nonce."""
    return bool(row.signed or new.signed or (row.state != VOID and row.expires > new.made))


def idempotency_holds(row: Found, new: IdempotencyKey) -> bool:
    """While the request runs, and when its answer was complete. One that came to another end may be tried again."""
    if row.expires <= new.made:
        return False
    # Without its row the request ended long ago.
    return bool(row.state in {RESERVED, None} or row.reason == COMPLETE)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of claims: its table, and the statements."""

    table: Table
    find: Select[*tuple[Any, ...]]
    drop: Delete
    holds: Callable[[Found, Any], bool]
    row: Callable[[Any], dict[str, object]]


def _kind(table: Table, holds: Callable[[Found, Any], bool], row: Callable[[Any], dict[str, object]]) -> _Kind:
    named = table.c.id.in_(bindparam("ids", expanding=True))
    ends = (ledger.c.state, ledger.c.reason, ledger.c.stream)
    beside = table.outerjoin(ledger, ledger.c.request_id == table.c.request_id)
    return _Kind(table, select(table, *ends).select_from(beside).where(named), delete(table).where(named), holds, row)


NONCES: Final = _kind(
    nonce, nonce_holds, lambda claim: {"id": claim.id, "expires": claim.expires, "signed": claim.signed}
)
IDEMPOTENCY_KEYS: Final = _kind(
    idempotency,
    idempotency_holds,
    lambda claim: {"id": claim.id, "expires": claim.expires, "fingerprint": claim.fingerprint, "answer": None},
)


async def take(connection: AsyncConnection, claimants: Sequence[Claimant]) -> None:
    """Write the claims of new requests. Raises ClaimTakenError. Runs in the writer's transaction."""
    pairs = [(claim, claimant.request_id) for claimant in claimants for claim in claimant.claims]
    await _take(connection, NONCES, [pair for pair in pairs if isinstance(pair[0], Nonce)])
    await _take(connection, IDEMPOTENCY_KEYS, [pair for pair in pairs if isinstance(pair[0], IdempotencyKey)])


async def _take(connection: AsyncConnection, kind: _Kind, pairs: Iterable[tuple[Claim, str]]) -> None:
    claimed: dict[str, tuple[Claim, str]] = {}
    for claim, request_id in pairs:
        if claimed.setdefault(claim.id, (claim, request_id))[1] != request_id:
            # The writer then tries them one by one, and the first of them gets it.
            raise ClaimTakenError(claim)
    if not claimed:
        return
    # Sorted, so that two writers on Postgres cannot wait for each other.
    ids = sorted(claimed)
    found = (await connection.execute(kind.find, {"ids": ids})).all()
    for row in found:
        claim, request_id = claimed[row.id]
        if row.request_id != request_id and kind.holds(row, claim):
            raise ClaimTakenError(claim)
    if found:
        await connection.execute(kind.drop, {"ids": [row.id for row in found]})
    rows = [{"request_id": claimed[claim_id][1], **kind.row(claimed[claim_id][0])} for claim_id in ids]
    await connection.execute(insert(kind.table), rows)
