"""Monthly quotas, kept in memory beside the ledger: what a key has settled and reserved in a calendar month.

The ledger is the truth; the book is read from it once per key and month, and moves by what the ledger is told to move
by, at the moment it is told. So looking and reserving need no `await` between them, and overshoot is nothing.
"""

from dataclasses import dataclass
from typing import Final, Protocol

_FEWEST_BEFORE_PURGE: Final = 1024


class Standing(Protocol):
    """What the ledger says of one key in one period."""

    @property
    def settled_tokens(self) -> int: ...
    @property
    def reserved_tokens(self) -> int: ...
    @property
    def settled_requests(self) -> int: ...
    @property
    def reserved_requests(self) -> int: ...


class Standings(Protocol):
    """Where standings come from: `proxy.store.ledger.Ledger`."""

    async def standing(self, key_id: str, period: str) -> Standing: ...


@dataclass(frozen=True, slots=True)
class QuotaLook:
    """Whether what is requested fits. A limit of None is no limit; `used` is settled and reserved together."""

    limit: int | None
    used: int
    requested: int

    @property
    def fits(self) -> bool:
        return self.limit is None or self.used + self.requested <= self.limit


@dataclass(slots=True)
class _Line:
    """One key in one period. Mutable, all of it, by `QuotaBook` alone."""

    settled_tokens: int
    reserved_tokens: int
    settled_requests: int
    reserved_requests: int


class QuotaBook:
    """The lines of all keys that asked for something. Mutable: `_lines`, by key id and period."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self._lines: dict[tuple[str, str], _Line] = {}
        self._purge_at = _FEWEST_BEFORE_PURGE

    async def prime(self, key_id: str, period: str) -> None:
        """Read a line from the ledger, unless it is here. Everything below needs it to be here."""
        if (key_id, period) in self._lines:
            return
        found = await self._standings.standing(key_id, period)
        # Two may have read at once, and the first has perhaps reserved since: its line is the newer one.
        self._lines.setdefault(
            (key_id, period),
            _Line(found.settled_tokens, found.reserved_tokens, found.settled_requests, found.reserved_requests),
        )
        if len(self._lines) > self._purge_at:
            self._purge()

    def peek_requests(self, key_id: str, period: str, limit: int | None) -> QuotaLook:
        """Whether one more request fits."""
        line = self._lines[key_id, period]
        return QuotaLook(limit, line.settled_requests + line.reserved_requests, 1)

    def peek_tokens(self, key_id: str, period: str, limit: int | None, tokens: int) -> QuotaLook:
        line = self._lines[key_id, period]
        return QuotaLook(limit, line.settled_tokens + line.reserved_tokens, tokens)

    def commit(self, key_id: str, period: str, tokens: int) -> None:
        """Reserve a request and its tokens, whether they fit or not: the caller has looked."""
        line = self._lines[key_id, period]
        line.reserved_requests += 1
        line.reserved_tokens += tokens

    def shrink(self, key_id: str, period: str, tokens: int) -> None:
        """Give back some of a request's reserved tokens."""
        self._lines[key_id, period].reserved_tokens -= tokens

    def settle(self, key_id: str, period: str, *, reserved: int, used: int) -> None:
        """A request is over: its reservation becomes what it used."""
        line = self._lines[key_id, period]
        line.reserved_requests -= 1
        line.reserved_tokens -= reserved
        line.settled_requests += 1
        line.settled_tokens += used

    def void(self, key_id: str, period: str, *, reserved: int) -> None:
        """Nothing of a request ran: its reservation is gone, the request with it."""
        line = self._lines[key_id, period]
        line.reserved_requests -= 1
        line.reserved_tokens -= reserved

    def _purge(self) -> None:
        """Forget lines of past months that nothing holds open. The last two months stay: the ledger may lag behind
        this one's, and whoever is being admitted at midnight has looked at the other.
        """
        kept = sorted({period for _, period in self._lines})[-2:]
        self._lines = {key: line for key, line in self._lines.items() if key[1] in kept or line.reserved_requests > 0}
        self._purge_at = max(_FEWEST_BEFORE_PURGE, 2 * len(self._lines))
