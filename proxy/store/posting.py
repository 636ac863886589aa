"""The records of the ledger, and what a batch of them changes: pure, no SQL.

A row is `reserved` once, may shrink while it is, and ends once as `settled`, `forced` (settled at the estimate) or
`void` (nothing ran). Whatever comes again, or too late, changes nothing. `quota` moves by exactly what the row did. A
`refused` row never was anything else and moves nothing: see `refusals`.
"""

import datetime as dt
import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from proxy.store.claims import Claim, ClaimTakenError
from proxy.store.standing import UNLIMITED, Monthly, QuotaExceededError, Standing, exceeded


class State(enum.StrEnum):
    """What a ledger row is."""

    RESERVED = "reserved"
    SETTLED = "settled"
    FORCED = "forced"
    VOID = "void"
    REFUSED = "refused"


class Entry(msgspec.Struct, frozen=True):
    """A reservation: `est_tokens` are set aside for the key in the period. `upstream` names the sidecar, if chosen.

    What was asked: `asked_output_tokens` per choice, None for nothing; `bound_prompt_tokens`, what the body's bytes say
    the prompts have at most, None if bytes do not tell; the model's `max_context`; how many `prompts`.
    """

    request_id: str
    key_id: str
    account_id: str
    tier: str
    period: str
    endpoint: str
    model: str
    upstream: str | None
    stream: bool
    choices: int
    priority: int
    est_tokens: int
    created: dt.datetime
    client_request_id: str | None = None
    trace_id: str | None = None
    asked_output_tokens: int | None = None
    bound_prompt_tokens: int | None = None
    max_context: int | None = None
    prompts: int | None = None


class Reserved(msgspec.Struct, frozen=True):
    """A reservation, made by one boot of the proxy, what the request claims for itself, and the quotas it must fit."""

    entry: Entry
    boot_id: str
    claims: tuple[Claim, ...] = ()
    limits: Monthly = UNLIMITED

    @property
    def request_id(self) -> str:
        return self.entry.request_id


class Shrunk(msgspec.Struct, frozen=True):
    """The reservation of a request is now smaller. A greater one is not taken: it was never admitted."""

    request_id: str
    est_tokens: int


class Settled(msgspec.Struct, frozen=True):
    """The end of a request that ran. `forced`: charged at the estimate, because nobody could say what it used."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ended: dt.datetime
    duration_ms: int
    ttft_ms: int | None
    status: int
    reason: str
    finish_reason: str = ""
    error_code: str | None = None
    forced: bool = False

    @property
    def state(self) -> State:
        return State.FORCED if self.forced else State.SETTLED


class Voided(msgspec.Struct, frozen=True):
    """The end of a request of which nothing ran: nothing is owed."""

    request_id: str
    ended: dt.datetime
    duration_ms: int
    status: int
    reason: str
    error_code: str | None = None

    @property
    def state(self) -> State:
        return State.VOID


Operation = Reserved | Shrunk | Settled | Voided
NOTHING: Final = Standing()
# The counters of `quota`, by their columns.
COUNTERS: Final = (
    "settled_tokens",
    "reserved_tokens",
    "settled_requests",
    "reserved_requests",
    "settled_prompt_tokens",
    "settled_cached_tokens",
)


@dataclass(frozen=True, slots=True)
class Booked:
    """What the decisions need to know of a ledger row."""

    state: str
    est_tokens: int
    key_id: str
    period: str
    account_id: str


# Whose counters, and of which month.
At = tuple[str, str]


class Posting:
    """What a batch of operations changes, decided one operation after the other.

    `keys` and `accounts` say where those stand whose reservations have limits, `taken` who wants what another request
    has. Mutable: `_rows` (each row as the operations so far leave it), `reserved` (rows to insert), `refused`
    (reservations that exceed a limit or want what another request has), `shrunk` (estimates to write), `ended` (rows
    to end, after that), `moves` (what is added to the counters of a key's period), `_of_accounts` (the same of an
    account's).
    """

    def __init__(
        self,
        rows: Mapping[str, Booked],
        keys: Mapping[At, Standing] | None = None,
        accounts: Mapping[At, Standing] | None = None,
        taken: Mapping[str, ClaimTakenError] | None = None,
    ) -> None:
        self._rows = dict(rows)
        self._keys = keys or {}
        self._accounts = accounts or {}
        self._taken = taken or {}
        self._of_accounts: dict[At, Counter[str]] = {}
        self.reserved: list[Reserved] = []
        self.refused: dict[str, QuotaExceededError | ClaimTakenError] = {}
        self.shrunk: dict[str, int] = {}
        self.ended: list[Settled | Voided] = []
        self.moves: dict[At, Counter[str]] = {}

    def post(self, operation: Operation) -> None:
        if isinstance(operation, Reserved):
            self._reserve(operation)
            return
        row = self._rows.get(operation.request_id)
        if row is None or row.state != State.RESERVED:
            return
        if isinstance(operation, Shrunk):
            self._shrink(operation, row)
        else:
            self._end(operation, row)

    def _reserve(self, reserved: Reserved) -> None:
        entry = reserved.entry
        if entry.request_id in self._rows:
            return
        if (taken := self._taken.get(entry.request_id)) is not None:
            self.refused[entry.request_id] = taken
            return
        if reserved.limits.any and (why := self._exceeded(reserved)) is not None:
            self.refused[entry.request_id] = why
            return
        self.refused.pop(entry.request_id, None)
        row = Booked(State.RESERVED, entry.est_tokens, entry.key_id, entry.period, entry.account_id)
        self._rows[entry.request_id] = row
        self.reserved.append(reserved)
        self._move(row, reserved_tokens=entry.est_tokens, reserved_requests=1)

    def _shrink(self, shrunk: Shrunk, row: Booked) -> None:
        if shrunk.est_tokens >= row.est_tokens:
            return
        self._rows[shrunk.request_id] = Booked(row.state, shrunk.est_tokens, row.key_id, row.period, row.account_id)
        self.shrunk[shrunk.request_id] = shrunk.est_tokens
        self._move(row, reserved_tokens=shrunk.est_tokens - row.est_tokens)

    def _end(self, end: Settled | Voided, row: Booked) -> None:
        self._rows[end.request_id] = Booked(end.state, row.est_tokens, row.key_id, row.period, row.account_id)
        self.ended.append(end)
        self._move(row, reserved_tokens=-row.est_tokens, reserved_requests=-1)
        if isinstance(end, Settled):
            self._move(
                row,
                settled_tokens=end.prompt_tokens + end.completion_tokens,
                settled_requests=1,
                settled_prompt_tokens=end.prompt_tokens,
                settled_cached_tokens=end.cached_tokens,
            )

    def _exceeded(self, reserved: Reserved) -> QuotaExceededError | None:
        entry = reserved.entry
        key, account = (entry.key_id, entry.period), (entry.account_id, entry.period)
        return exceeded(
            reserved.limits,
            _after(self._keys.get(key, NOTHING), self.moves.get(key)),
            _after(self._accounts.get(account, NOTHING), self._of_accounts.get(account)),
            entry.est_tokens,
        )

    def _move(self, row: Booked, **counters: int) -> None:
        for moves, at in ((self.moves, (row.key_id, row.period)), (self._of_accounts, (row.account_id, row.period))):
            moved = moves.get(at)
            if moved is None:
                moves[at] = Counter(counters)
            else:
                # `update` does the same for more kinds of things, and takes five times as long.
                for name, by in counters.items():
                    moved[name] += by


def _after(before: Standing, moved: Counter[str] | None) -> Standing:
    if not moved:
        return before
    return Standing(
        before.settled_tokens + moved["settled_tokens"],
        before.reserved_tokens + moved["reserved_tokens"],
        before.settled_requests + moved["settled_requests"],
        before.reserved_requests + moved["reserved_requests"],
    )
