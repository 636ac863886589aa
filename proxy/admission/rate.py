"""Rates by the generic cell rate algorithm (ITU-T I.371): one number for each subject and limit, and exact waits.

A cell holds `limit` units and refills at `limit` a period. Its number is when it will be full again, in nanoseconds
times the limit: so one unit is one period, all arithmetic is in whole numbers, and a wait is true to the nanosecond.
Pure and synchronous, so that looking at several limits and charging them all can happen without an `await` between.
"""

from typing import Final

import msgspec

from proxy.clock import Clock

_NS: Final = 1_000_000_000
_FEWEST_BEFORE_PURGE: Final = 1024


class Rate(msgspec.Struct, frozen=True):
    """So many units a period, all of which may be used at once."""

    limit: int
    period_s: int = 60

    @property
    def unit(self) -> int:
        """What one unit weighs, in nanoseconds times the limit."""
        return self.period_s * _NS


class RateLook(msgspec.Struct, frozen=True):
    """What a cell says to a request for `requested` units. `retry_after_s` of None means that it can never fit."""

    limit: int
    requested: int
    remaining: int
    reset_s: float
    retry_after_s: float | None

    @property
    def fits(self) -> bool:
        return self.retry_after_s == 0

    @property
    def used(self) -> int:
        return self.limit - self.remaining


class Charge(msgspec.Struct, frozen=True):
    """Units taken from a cell. `until` is when time alone will have given the last of them back, in the cell's unit."""

    subject: str
    rate: Rate
    units: int
    until: int


class Cells:
    """The cells of one kind of limit. Mutable: `_full_at`, by subject and rate, without those that are full again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, Rate], int] = {}
        self._purge_at = _FEWEST_BEFORE_PURGE

    def __len__(self) -> int:
        return len(self._full_at)

    def peek(self, subject: str, rate: Rate, units: int) -> RateLook:
        """Whether `units` fit now; changes nothing. Asking for 0 units fits always."""
        limit, unit = rate.limit, rate.unit
        missing = max(0, self._full_at.get((subject, rate), 0) - self._now_ns() * limit)
        whole = limit * unit
        too_much = missing + units * unit - whole
        retry_after_s: float | None = 0.0
        if units > limit:
            retry_after_s = None
        elif units and too_much > 0:
            retry_after_s = _seconds(too_much, rate)
        return RateLook(
            limit=limit,
            requested=units,
            remaining=max(0, whole - missing) // unit,
            reset_s=_seconds(missing, rate),
            retry_after_s=retry_after_s,
        )

    def fits(self, subject: str, rate: Rate, units: int) -> bool:
        """What `peek` says in the end, for less."""
        if units > rate.limit:
            return False
        full_at = self._full_at.get((subject, rate))
        if full_at is None or not units:
            return True
        return max(0, full_at - self._now_ns() * rate.limit) <= (rate.limit - units) * rate.unit

    def commit(self, subject: str, rate: Rate, units: int) -> Charge:
        """Take units, whether they fit or not: the caller has looked, or they are owed already."""
        now = self._now_ns() * rate.limit
        until = max(self._full_at.get((subject, rate), 0), now) + units * rate.unit
        self._full_at[subject, rate] = until
        if len(self._full_at) > self._purge_at:
            self._purge()
        return Charge(subject, rate, units, until)

    def show(self, subject: str, rate: Rate, reset_s: float) -> None:
        """It is counted elsewhere, and will be full after this time."""
        full_at = self._now_ns() * rate.limit + round(reset_s * _NS) * rate.limit
        self._full_at[subject, rate] = full_at

    def refund(self, charge: Charge, units: int) -> None:
        """Give units of a charge back, except those that time has given back already.

        A request that reserved a minute's tokens and took a minute would otherwise leave its successor with two.
        """
        key = (charge.subject, charge.rate)
        full_at = self._full_at.get(key)
        if full_at is None:
            return
        now = self._now_ns() * charge.rate.limit
        standing = min(charge.until, full_at) - now
        returned = min(min(units, charge.units) * charge.rate.unit, max(0, standing))
        if full_at - returned <= now:
            del self._full_at[key]
        else:
            self._full_at[key] = full_at - returned

    def forget(self, subject: str, rate: Rate) -> None:
        """Take a cell for full."""
        self._full_at.pop((subject, rate), None)

    def _purge(self) -> None:
        """Forget the full cells: a forgotten one is taken for full. Seldom enough to cost a commit next to nothing."""
        now = self._now_ns()
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now * key[1].limit}
        self._purge_at = max(_FEWEST_BEFORE_PURGE, 2 * len(self._full_at))

    def _now_ns(self) -> int:
        return round(self._clock.monotonic() * _NS)


class Allowance:
    """The same rate for each of many subjects, a unit at a time: `proxy.identity` counts failures by address in one."""

    def __init__(self, clock: Clock, rate: Rate) -> None:
        self._cells = Cells(clock)
        self._rate = rate

    def take(self, subject: str) -> float:
        """Take a unit and give 0; or, if there is none left, take nothing and give the seconds until there is one."""
        look = self._cells.peek(subject, self._rate, 1)
        if look.retry_after_s:
            return look.retry_after_s
        self._cells.commit(subject, self._rate, 1)
        return 0.0


def _seconds(weight: int, rate: Rate) -> float:
    """Rounded up to whole nanoseconds: whoever waits this long is not a nanosecond early."""
    return -(-weight // rate.limit) / _NS
