"""Rates and leases that several proxies hold to together, in Valkey: the limits do not multiply with the proxies.

All of a request's limits are looked at and taken from by one script, by the clock of Valkey's own machine. When Valkey
is away, slow or empty, nobody waits for it: each proxy then goes by its share of every limit, counted in itself, and it
comes back as soon as Valkey does. What it never knows is what a month has left: that is the ledger's.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from proxy.admission.concurrency import ConcurrencyLook
from proxy.admission.rate import Rate, RateLook
from proxy.store.valkey import ValkeyAwayError

# A lease that nobody renews is given back after this long: its proxy is dead (GUARDS F1).
LEASE_S: Final = 15
RENEW_EVERY_S: Final = 5.0
# How often a Valkey that is away is asked whether it is back.
PROBE_EVERY_S: Final = 1.0
# More than this is not kept for a Valkey that is away: time gives rates back by itself, and leases end.
MOST_RETURNS: Final = 10_000
PROXIES: Final = "tollhouse:proxies"
_US: Final = 1_000_000

# KEYS: the cells, then the leases if they are asked for. ARGV: how many cells; limit, period in µs and units of each;
# the lease's limit (-1 is none), member and length in µs. Gives whether all fit, the time in µs, the leases that are
# out, and the level of each cell. A cell holds what is used and has not come back yet: the other view of GCRA's one
# number, which keeps to the digits that Lua's numbers have.
TAKE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local count = tonumber(ARGV[1])
local levels, fits = {}, 1
for i = 1, count do
  local limit, period, units = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local cell = redis.call('HMGET', KEYS[i], 'level', 'at')
  local level = 0
  if cell[1] then
    level = math.max(0, tonumber(cell[1]) - math.max(0, now - tonumber(cell[2])) * limit / period)
  end
  if units > 0 and level + units > limit + 0.000001 then fits = 0 end
  levels[i] = level
end
local at = 3 * count + 2
local limit, member, length = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
local running = 0
if limit >= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[count + 1], '-inf', now)
  running = redis.call('ZCARD', KEYS[count + 1])
  if running >= limit then fits = 0 end
end
if fits == 1 then
  for i = 1, count do
    local limit, period, units = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
    levels[i] = levels[i] + units
    redis.call('HSET', KEYS[i], 'level', string.format('%.17g', levels[i]), 'at', string.format('%d', now))
    redis.call('PEXPIRE', KEYS[i], math.ceil(levels[i] * period / limit / 1000) + 1000)
  end
  if limit >= 0 then
    redis.call('ZADD', KEYS[count + 1], now + length, member)
    redis.call('PEXPIRE', KEYS[count + 1], math.ceil(length / 1000) + 1000)
  end
end
local told = {fits, string.format('%d', now), running}
for i = 1, count do told[3 + i] = string.format('%.17g', levels[i]) end
return told
"""
# KEYS: the cell. ARGV: limit, period in µs, units, and the level and time of the charge. As `Cells.refund`: what time
# has given back already is not given back twice.
REFUND: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local limit, period, units = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local cell = redis.call('HMGET', KEYS[1], 'level', 'at')
if not cell[1] then return 0 end
local level = math.max(0, tonumber(cell[1]) - math.max(0, now - tonumber(cell[2])) * limit / period)
local standing = math.max(0, tonumber(ARGV[4]) - math.max(0, now - tonumber(ARGV[5])) * limit / period)
level = math.max(0, level - math.min(units, standing, level))
redis.call('HSET', KEYS[1], 'level', string.format('%.17g', level), 'at', string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(level * period / limit / 1000) + 1000)
return 1
"""
# KEYS: the proxies. ARGV: this one, and how long it counts, in µs. Gives how many there are.
PRESENT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
return redis.call('ZCARD', KEYS[1])
"""
# KEYS: the leases of a subject. ARGV: how long they are renewed for, in µs, and the members.
RENEW: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[1]) / 1000) + 1000)
return 1
"""


# KEYS: the leases of a subject. ARGV: the member.
LET_GO: Final = "return redis.call('ZREM', KEYS[1], ARGV[1])"


class Scripts(Protocol):
    """What runs the scripts; see `proxy.store.valkey.Valkey`."""

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> Any:
        """Raises ValkeyAwayError."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Units that a request wants of one rate."""

    kind: str
    subject: str
    rate: Rate
    units: int


@dataclass(frozen=True, slots=True)
class SharedCharge:
    """Units taken from a shared cell: its level afterwards, and when that was, in µs of Valkey's clock."""

    cell: str
    rate: Rate
    units: int
    level: float
    at_us: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request holds of what is shared."""

    charges: tuple[SharedCharge, ...]
    lease: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Valkey says: `taken` if all fit, and the look at each wish and at the lease."""

    taken: Taken | None
    looks: tuple[RateLook, ...]
    concurrency: ConcurrencyLook


class SharedLimits:
    """The limits that are counted in Valkey. Use it as `async with`.

    Mutable: `_away` and `_known`, how many proxies there are; `_held`, the members of the leases that are out, by their
    key; `_returns`, what is to be given back, and `_wake`, set when there is some; `_lost`, set when Valkey
    has gone away; the two tasks.
    """

    def __init__(self, valkey: Scripts, proxy_id: str, told: Callable[[bool, int], None]) -> None:
        """`told` hears whether Valkey is there and how many proxies there are, whenever one of the two changes."""
        self._valkey = valkey
        self._proxy_id = proxy_id
        self._told = told
        self._known = 1
        self._away: bool | None = None
        self._held: dict[str, set[str]] = {}
        self._returns: deque[tuple[str, tuple[str, ...], tuple[str, ...]]] = deque(maxlen=MOST_RETURNS)
        self._wake = asyncio.Event()
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._be_present()
        self._tasks = [
            asyncio.create_task(self._keep_present(), name="valkey leases"),
            asyncio.create_task(self._give_back(), name="valkey returns"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def share(self) -> int | None:
        """By how much each limit is to be divided while Valkey is away; None as long as it decides."""
        return self._known if self._away else None

    async def take(self, wishes: Sequence[Wish], concurrency: tuple[str, int] | None, member: str) -> Verdict | None:
        """Take all or nothing. None if Valkey is away: the caller goes by its share.

        `concurrency`: whose leases, and how many may be out. `member` is this request's, and nobody else's.
        """
        if self._away:
            return None
        cells = [_cell(wish) for wish in wishes]
        keys, arguments = list(cells), [str(len(cells))]
        for wish in wishes:
            arguments += [str(wish.rate.limit), str(wish.rate.period_s * _US), str(wish.units)]
        leases = None if concurrency is None else _leases(concurrency[0])
        limit = -1 if concurrency is None else concurrency[1]
        arguments += [str(limit), member, str(LEASE_S * _US)]
        if leases is not None:
            keys.append(leases)
        try:
            fits, now, running, *levels = await self._valkey.run(TAKE, keys, arguments)
        except ValkeyAwayError:
            self._note(away=True)
            if leases is not None:
                # It may have been taken all the same, by a Valkey that was slow.
                self._return(LET_GO, (leases,), (member,))
            return None
        found = [float(level) for level in levels]
        # A level that was taken from holds the request's own units already.
        looks = tuple(
            _look(wish, level - wish.units if fits else level) for wish, level in zip(wishes, found, strict=True)
        )
        look = ConcurrencyLook(None if concurrency is None else limit, int(running))
        if not fits:
            return Verdict(None, looks, look)
        if leases is not None:
            self._held.setdefault(leases, set()).add(member)
        charges = tuple(
            SharedCharge(cell, wish.rate, wish.units, level, int(now))
            for cell, wish, level in zip(cells, wishes, found, strict=True)
        )
        return Verdict(Taken(charges, None if leases is None else (leases, member)), looks, look)

    def give_back(self, charge: SharedCharge, units: int) -> None:
        """Give units of a charge back, soon; fewer than none are taken on top."""
        if units != 0:
            numbers = (charge.rate.limit, charge.rate.period_s * _US, units, f"{charge.level:.17g}", charge.at_us)
            self._return(REFUND, (charge.cell,), tuple(str(number) for number in numbers))

    def release(self, taken: Taken) -> None:
        """Give the lease back, soon. A second time does nothing."""
        if taken.lease is None:
            return
        leases, member = taken.lease
        held = self._held.get(leases)
        if held is None or member not in held:
            return
        held.discard(member)
        if not held:
            del self._held[leases]
        self._return(LET_GO, (leases,), (member,))

    def _return(self, script: str, keys: tuple[str, ...], arguments: tuple[str, ...]) -> None:
        self._returns.append((script, keys, arguments))
        self._wake.set()

    async def _give_back(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._returns and not self._away:
                script, keys, arguments = returned = self._returns.popleft()
                try:
                    await self._valkey.run(script, keys, arguments)
                except ValkeyAwayError:
                    self._returns.appendleft(returned)
                    self._note(away=True)

    async def _keep_present(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_EVERY_S if self._away else RENEW_EVERY_S):
                    await self._lost.wait()
            self._lost.clear()
            await self._be_present()

    async def _be_present(self) -> None:
        """Say that this proxy lives, and renew its leases."""
        try:
            known = await self._valkey.run(PRESENT, [PROXIES], [self._proxy_id, str(LEASE_S * _US)])
            for leases, members in list(self._held.items()):
                await self._valkey.run(RENEW, [leases], [str(LEASE_S * _US), *members])
        except ValkeyAwayError:
            self._note(away=True)
        else:
            self._note(away=False, known=max(1, int(known)))

    def _note(self, *, away: bool, known: int | None = None) -> None:
        before = self._away, self._known
        self._away, self._known = away, known or self._known
        if away != before[0]:
            (self._lost if away else self._wake).set()
        if (away, self._known) != before:
            self._told(not away, self._known)


def _cell(wish: Wish) -> str:
    # What is in braces decides the slot of a cluster: all that one request asks for must be in one.
    return f"tollhouse:{{{_owner(wish.subject)}}}:{wish.kind}:{wish.subject}:{wish.rate.limit}"


def _leases(subject: str) -> str:
    return f"tollhouse:{{{_owner(subject)}}}:leases:{subject}"


def _owner(subject: str) -> str:
    return subject.partition(" ")[0]


def _look(wish: Wish, level: float) -> RateLook:
    limit, units, unit_s = wish.rate.limit, wish.units, wish.rate.period_s / wish.rate.limit
    too_much = level + units - limit
    retry_after_s: float | None = max(0.0, too_much * unit_s) if units and too_much > 1e-6 else 0.0
    if units > limit:
        retry_after_s = None
    remaining = max(0, int(limit - level + 1e-6))
    return RateLook(limit, units, remaining, max(0.0, level) * unit_s, retry_after_s)
