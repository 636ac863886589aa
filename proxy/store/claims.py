"""What a request claims for itself when it is let in, and no other request may have: a nonce, an idempotency key.

A claim is a row, written in the transaction of its request's reservation, so that there is never one without the other.
Whether it still holds is read off the ledger: there is no state to keep in step, and nothing to mend after a crash.
"""

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import Delete, Row, Select, Table, bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.failure import StorageError
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


class NotRememberedError(StorageError):
    """Whether another request has it cannot be told: it may be older than what is remembered. `wait_s`: how long until
    a claim that is made then can be judged.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__("what was used before is not remembered")
        self.wait_s = wait_s


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

    claim: type[Claim]
    table: Table
    find: Select[*tuple[Any, ...]]
    drop: Delete
    holds: Callable[[Found, Any], bool]
    row: Callable[[Any], dict[str, object]]


def _kind(
    claim: type[Claim], table: Table, holds: Callable[[Found, Any], bool], row: Callable[[Any], dict[str, object]]
) -> _Kind:
    named = table.c.id.in_(bindparam("ids", expanding=True))
    ends = (ledger.c.state, ledger.c.reason, ledger.c.stream)
    beside = table.outerjoin(ledger, ledger.c.request_id == table.c.request_id)
    find = select(table, *ends).select_from(beside).where(named)
    return _Kind(claim, table, find, delete(table).where(named), holds, row)


NONCES: Final = _kind(
    Nonce, nonce, nonce_holds, lambda claim: {"id": claim.id, "expires": claim.expires, "signed": claim.signed}
)
IDEMPOTENCY_KEYS: Final = _kind(
    IdempotencyKey,
    idempotency,
    idempotency_holds,
    lambda claim: {"id": claim.id, "expires": claim.expires, "fingerprint": claim.fingerprint, "answer": None},
)


async def taken(connection: AsyncConnection, claimants: Sequence[Claimant]) -> dict[str, ClaimTakenError]:
    """Which of new requests want what another has, by their ids. Of those that want the same the first may have it.

    Runs in the writer's transaction. Two processes on one Postgres may both be told that something is free: only one of
    them can write it.
    """
    refused: dict[str, ClaimTakenError] = {}
    for kind in (NONCES, IDEMPOTENCY_KEYS):
        wanted = _wanted(kind, claimants)
        rows = await _rows(connection, kind, wanted)
        for claim_id, pairs in wanted.items():
            row, first = rows.get(claim_id), pairs[0][1]
            for claim, request_id in pairs:
                held = row is not None and row.request_id != request_id and kind.holds(row, claim)
                if held or request_id != first:
                    refused[request_id] = ClaimTakenError(claim)
    return refused


async def write(connection: AsyncConnection, claimants: Sequence[Claimant]) -> None:
    """Write the claims of requests that are let in, in the place of those that hold no more."""
    for kind in (NONCES, IDEMPOTENCY_KEYS):
        # Sorted, so that two writers on Postgres cannot wait for each other.
        wanted = dict(sorted(_wanted(kind, claimants).items()))
        if not wanted:
            continue
        await connection.execute(kind.drop, {"ids": list(wanted)})
        rows = [{"request_id": pairs[0][1], **kind.row(pairs[0][0])} for pairs in wanted.values()]
        await connection.execute(insert(kind.table), rows)


def _wanted(kind: _Kind, claimants: Sequence[Claimant]) -> dict[str, list[tuple[Claim, str]]]:
    """The claims of a kind by their ids, each with who wants it, in their order."""
    wanted: dict[str, list[tuple[Claim, str]]] = {}
    for claimant in claimants:
        for claim in claimant.claims:
            if isinstance(claim, kind.claim):
                wanted.setdefault(claim.id, []).append((claim, claimant.request_id))
    return wanted


async def _rows(connection: AsyncConnection, kind: _Kind, ids: Collection[str]) -> dict[str, Found]:
    if not ids:
        return {}
    return {row.id: row for row in await connection.execute(kind.find, {"ids": list(ids)})}
