"""What several proxies allow together: a key's minute and its requests at once, counted in Valkey for all of them.

A request takes its part there before it takes anything here, and gives it back if it is not let in after all. While
Valkey is away every proxy goes by its share of each limit (see `rules`). Rules in shadow are tried by each proxy for
itself, and what a month has left is the ledger's to say.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from proxy.admission.concurrency import ConcurrencyLook
from proxy.admission.meters import Size, Subject
from proxy.admission.rate import Cells, RateLook
from proxy.admission.rules import Limit
from proxy.admission.shared import SharedLimits, Taken, Wish


class OverLimitError(Exception):
    """A limit of all proxies together does not fit: which, and what it says."""

    def __init__(self, limit: Limit, look: RateLook | ConcurrencyLook) -> None:
        super().__init__(limit.rule)
        self.limit = limit
        self.look = look


class Fleet(Protocol):
    """What the gate asks of the other proxies."""

    @property
    def share(self) -> int | None:
        """By how much each limit is to be divided here; None where all proxies count together."""

    async def take(self, subject: Subject, size: Size | None, request_id: str) -> "Part | None":
        """Take a request's part; None if it is for each proxy to decide. Raises OverLimitError.

        `size` of None is of what runs nothing, and takes no tokens.
        """


class Alone:
    """The only proxy there is: everything is counted here."""

    share = 1

    async def take(self, _subject: Subject, _size: Size | None, _request_id: str) -> "Part | None":
        return None


@dataclass(frozen=True, slots=True)
class Shown:
    """Where the limits of all are shown, for the headers of answers: the cells of this proxy."""

    requests: Cells
    tokens: Cells


class Together:
    """All proxies on one Valkey. Stateless."""

    def __init__(self, shared: SharedLimits, shown: Shown) -> None:
        self._shared = shared
        self._shown = shown

    @property
    def share(self) -> int | None:
        return self._shared.share

    async def take(self, subject: Subject, size: Size | None, request_id: str) -> "Part | None":
        """See `Fleet`. None if Valkey is away."""
        rules = subject.rules
        asked = (rules.requests,) if size is None else (rules.requests, rules.tokens)
        limits = [limit for limit in asked if limit is not None and limit.elsewhere]
        wishes = [
            Wish(limit.rule, subject.cell(limit), limit.rate, size.under(limit) if size and limit.sized else 1)
            for limit in limits
        ]
        at_once = rules.concurrency if rules.concurrency is not None and not rules.concurrency.shadow else None
        if not wishes and at_once is None:
            return None
        leases = None if at_once is None else (subject.cell(at_once), at_once.most)
        verdict = await self._shared.take(wishes, leases, request_id)
        if verdict is None:
            return None
        for limit, wish, look in zip(limits, wishes, verdict.looks, strict=True):
            cells = self._shown.tokens if limit.sized else self._shown.requests
            cells.show(wish.subject, wish.rate, look.reset_s)
        if verdict.taken is not None:
            return Part(self._shared, verdict.taken, [wish.units for wish in wishes], [limit.sized for limit in limits])
        for limit, look in zip(limits, verdict.looks, strict=True):
            if not look.fits:
                raise OverLimitError(limit, look)
        if at_once is None:
            raise RuntimeError("Valkey refused what it says fits")
        raise OverLimitError(at_once, verdict.concurrency)


class Part:
    """What a request holds of what is counted for all proxies. Used as `with`: unless it is kept, it is given back.

    Mutable: `_charged`, the units that each charge still stands for; `_kept`, and `_over`, once it was given back.
    """

    def __init__(self, shared: SharedLimits, taken: Taken, units: list[int], sized: list[bool]) -> None:
        self._shared = shared
        self._taken = taken
        self._charged = units
        self._sized = sized
        self._kept = False
        self._over = False

    def keep(self) -> "Part":
        """It is the hold's from now on."""
        self._kept = True
        return self

    def charge_only(self, tokens: int) -> None:
        """The minute is charged as much as this, be it less than before or more."""
        for place, charge in enumerate(self._taken.charges):
            if self._sized[place] and tokens != self._charged[place]:
                self._shared.give_back(charge, self._charged[place] - tokens)
                self._charged[place] = tokens

    def void(self) -> None:
        """Nothing of the request ran: it was none."""
        if not self._over:
            for charge, units in zip(self._taken.charges, self._charged, strict=True):
                self._shared.give_back(charge, units)
            self.release()

    def release(self) -> None:
        """The request is over. A second time does nothing."""
        self._over = True
        self._shared.release(self._taken)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self.void()
