"""What a request claims for itself when it is let in, and no other request may have: a nonce, an idempotency key.

A claim is a row, written in the transaction of its request's reservation, so that there is never one without the other.
Whether it still holds is read off the ledger: there is no state to keep in step, and nothing to mend after a crash.
"""

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import Delete, Row, Select, Table, TextClause, bindparam, delete, select, text
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
    find: Select[*tuple[Any, ...]]
    add: TextClause
    drop: Delete
    holds: Callable[[Found, Any], bool]
    row: Callable[[Any], dict[str, object]]


def _kind(
    claim: type[Claim], table: Table, holds: Callable[[Found, Any], bool], row: Callable[[Any], dict[str, object]]
) -> _Kind:
    ends = (ledger.c.state, ledger.c.reason, ledger.c.stream)
    beside = table.outerjoin(ledger, ledger.c.request_id == table.c.request_id)
    find = select(table, *ends).select_from(beside).where(table.c.id.in_(bindparam("ids", expanding=True)))
    # The same words in SQLite and in Postgres, for which SQLAlchemy has two constructs.
    names, places = (", ".join(column) for column in zip(*((c.name, f":{c.name}") for c in table.c), strict=True))
    adding = f"INSERT INTO {table.name} ({names}) VALUES ({places}) ON CONFLICT (id) DO NOTHING"  # noqa: S608 ours
    add = text(adding).bindparams(*(bindparam(column.name, type_=column.type) for column in table.c))
    drop = delete(table).where(table.c.id == bindparam("of"), table.c.request_id == bindparam("by"))
    return _Kind(claim, find, add, drop, holds, row)


NONCES: Final = _kind(
    Nonce, nonce, nonce_holds, lambda claim: {"id": claim.id, "expires": claim.expires, "signed": claim.signed}
)
IDEMPOTENCY_KEYS: Final = _kind(
    IdempotencyKey,
    idempotency,
    idempotency_holds,
    lambda claim: {"id": claim.id, "expires": claim.expires, "fingerprint": claim.fingerprint, "answer": None},
)


async def take(connection: AsyncConnection, claimants: Sequence[Claimant]) -> dict[str, ClaimTakenError]:
    """Write the claims of new requests, and say by their ids which of them want what another has.

    Of those that want the same the first gets it. Runs in the writer's transaction, as its first writing: of two
    processes on one Postgres one waits here for the other, and both take things in one order.
    """
    refused: dict[str, ClaimTakenError] = {}
    for kind in (NONCES, IDEMPOTENCY_KEYS):
        wanted: dict[str, tuple[Claim, str]] = {}
        for claimant in claimants:
            for claim in claimant.claims:
                if isinstance(claim, kind.claim):
                    _want(wanted, claim, claimant.request_id, refused)
        if wanted:
            await _take(connection, kind, dict(sorted(wanted.items())), refused)
    return refused


def _want(
    wanted: dict[str, tuple[Claim, str]], claim: Claim, request_id: str, refused: dict[str, ClaimTakenError]
) -> None:
    if wanted.setdefault(claim.id, (claim, request_id))[1] != request_id:
        refused[request_id] = ClaimTakenError(claim)


async def _take(
    connection: AsyncConnection,
    kind: _Kind,
    wanted: dict[str, tuple[Claim, str]],
    refused: dict[str, ClaimTakenError],
) -> None:
    rows = await _rows(connection, kind, wanted)
    free = {claim_id: pair for claim_id, pair in wanted.items() if not _is_anothers(kind, rows.get(claim_id), *pair)}
    if stale := [{"of": claim_id, "by": rows[claim_id].request_id} for claim_id in free if claim_id in rows]:
        await connection.execute(kind.drop, stale)
    if free:
        await connection.execute(kind.add, [{"request_id": by, **kind.row(claim)} for claim, by in free.values()])
        # Another process may have been a moment quicker.
        rows |= await _rows(connection, kind, free)
    for claim_id, (claim, request_id) in wanted.items():
        if claim_id not in rows or rows[claim_id].request_id != request_id:
            refused[request_id] = ClaimTakenError(claim)


async def give_back(connection: AsyncConnection, claimants: Sequence[Claimant]) -> None:
    """Unmake the claims of requests that are not let in after all. Runs in the transaction that took them."""
    for kind in (NONCES, IDEMPOTENCY_KEYS):
        drops = [
            {"of": claim.id, "by": claimant.request_id}
            for claimant in claimants
            for claim in claimant.claims
            if isinstance(claim, kind.claim)
        ]
        if drops:
            await connection.execute(kind.drop, drops)


def _is_anothers(kind: _Kind, row: Found | None, claim: Claim, request_id: str) -> bool:
    return row is not None and row.request_id != request_id and kind.holds(row, claim)


async def _rows(connection: AsyncConnection, kind: _Kind, ids: Collection[str]) -> dict[str, Found]:
    return {row.id: row for row in await connection.execute(kind.find, {"ids": list(ids)})}
