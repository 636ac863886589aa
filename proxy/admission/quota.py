"""Monthly quotas, kept in memory beside the ledger: what a key, and all keys of its account together, have settled and
reserved in a calendar month.

The ledger is the truth; the book is read from it once per key or account and month, and moves by what the ledger is
told to move by, at the moment it is told. So looking and reserving need no `await` between them, and overshoot is
nothing. Where other processes write to the same ledger, the book is read again every now and then: it looks ahead, and
the ledger decides.
"""

import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec

from proxy.clock import Clock
from proxy.store.failure import StorageError

_FEWEST_BEFORE_PURGE: Final = 1024


class Standing(Protocol):
    """What the ledger says of one key, or one account, in one period."""

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
    async def account_standing(self, account_id: str, period: str) -> Standing: ...


class Payer(Protocol):
    """Whose quotas: a key's and its account's, in a month."""

    @property
    def key_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def period(self) -> str: ...


class QuotaLook(msgspec.Struct, frozen=True):
    """Whether what is requested fits. A limit of None is no limit; `used` is settled and reserved together."""

    limit: int | None
    used: int
    requested: int

    @property
    def fits(self) -> bool:
        return self.limit is None or self.used + self.requested <= self.limit


@dataclass(slots=True)
class _Line:
    """One key or account in one period. Mutable, all of it, by `QuotaBook` alone. `read_s`: when it was read."""

    settled_tokens: int
    reserved_tokens: int
    settled_requests: int
    reserved_requests: int
    read_s: float

    def renew(self, found: Standing, before: "_Line") -> None:
        """Take over what the ledger says, and what has moved here since it was asked."""
        self.settled_tokens += found.settled_tokens - before.settled_tokens
        self.reserved_tokens += found.reserved_tokens - before.reserved_tokens
        self.settled_requests += found.settled_requests - before.settled_requests
        self.reserved_requests += found.reserved_requests - before.reserved_requests


_Read = Callable[[str, str], Awaitable[Standing]]
_Lines = dict[tuple[str, str], _Line]


class QuotaBook:
    """The lines of all who asked for something. Mutable: `_keys` and `_accounts`, by id and period.

    `fresh_s` is for how long a line is taken as read; None for as long as it is here.
    """

    def __init__(self, standings: Standings, clock: Clock, fresh_s: float | None = None) -> None:
        self._standings = standings
        self._clock = clock
        self._fresh_s = math.inf if fresh_s is None else fresh_s
        self._keys: _Lines = {}
        self._accounts: _Lines = {}
        self._purge_at = _FEWEST_BEFORE_PURGE

    async def prime(self, payer: Payer) -> None:
        """Read the lines of a key and its account from the ledger, unless they are here and fresh. Raises StorageError.

        Everything below needs them to be here. As nothing of an account is reserved before its own line is here, that
        line begins where nothing of it is under way.
        """
        now_s, period = self._clock.monotonic(), payer.period
        if not self._fresh(self._accounts.get((payer.account_id, period)), now_s):
            await self._have(self._accounts, payer.account_id, period, self._standings.account_standing)
        if not self._fresh(self._keys.get((payer.key_id, period)), now_s):
            await self._have(self._keys, payer.key_id, period, self._standings.standing)
        if len(self._keys) > self._purge_at:
            self._purge()

    def peek_requests(self, payer: Payer, limit: int | None, *, account: bool = False) -> QuotaLook:
        """Whether one more request fits, of the key or of the account."""
        line = self._line(payer, account)
        return QuotaLook(limit, line.settled_requests + line.reserved_requests, 1)

    def peek_tokens(self, payer: Payer, limit: int | None, tokens: int, *, account: bool = False) -> QuotaLook:
        line = self._line(payer, account)
        return QuotaLook(limit, line.settled_tokens + line.reserved_tokens, tokens)

    def commit(self, payer: Payer, tokens: int) -> None:
        """Reserve a request and its tokens, whether they fit or not: the caller has looked."""
        for line in self._both(payer):
            line.reserved_requests += 1
            line.reserved_tokens += tokens

    def shrink(self, payer: Payer, tokens: int) -> None:
        """Give back some of a request's reserved tokens."""
        for line in self._both(payer):
            line.reserved_tokens -= tokens

    def settle(self, payer: Payer, *, reserved: int, used: int) -> None:
        """A request is over: its reservation becomes what it used."""
        for line in self._both(payer):
            line.reserved_requests -= 1
            line.reserved_tokens -= reserved
            line.settled_requests += 1
            line.settled_tokens += used

    def void(self, payer: Payer, *, reserved: int) -> None:
        """Nothing of a request ran: its reservation is gone, the request with it."""
        for line in self._both(payer):
            line.reserved_requests -= 1
            line.reserved_tokens -= reserved

    def _line(self, payer: Payer, account: bool) -> _Line:
        return self._accounts[payer.account_id, payer.period] if account else self._keys[payer.key_id, payer.period]

    def _both(self, payer: Payer) -> tuple[_Line, _Line]:
        period = payer.period
        return self._keys[payer.key_id, period], self._accounts[payer.account_id, period]

    def doubt(self, payer: Payer) -> None:
        """The ledger knows better: the lines are read again before they are next looked at."""
        for line in self._both(payer):
            line.read_s = -math.inf

    def _fresh(self, line: _Line | None, now_s: float) -> bool:
        return line is not None and now_s - line.read_s < self._fresh_s and line.read_s != -math.inf

    async def _have(self, lines: _Lines, who: str, period: str, read: _Read) -> None:
        now_s = self._clock.monotonic()
        line = lines.get((who, period))
        if line is None:
            found = await read(who, period)
            # Two may have read at once, and the first has perhaps reserved since: its line is the newer one.
            lines.setdefault((who, period), _line(found, now_s))
        elif not self._fresh(line, now_s):
            # Before the wait, so that one reads and not all of them.
            line.read_s, before = now_s, replace(line)
            with contextlib.suppress(StorageError):
                line.renew(await read(who, period), before)

    def _purge(self) -> None:
        """Forget lines of past months that nothing holds open. The last two months stay: the ledger may lag behind
        this one's, and whoever is being admitted at midnight has looked at the other.
        """
        kept = sorted({period for _, period in self._keys})[-2:]
        self._keys, self._accounts = (
            {key: line for key, line in lines.items() if key[1] in kept or line.reserved_requests > 0}
            for lines in (self._keys, self._accounts)
        )
        self._purge_at = max(_FEWEST_BEFORE_PURGE, 2 * len(self._keys))


def _line(found: Standing, read_s: float) -> _Line:
    return _Line(found.settled_tokens, found.reserved_tokens, found.settled_requests, found.reserved_requests, read_s)
