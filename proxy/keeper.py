"""A process shows that it lives, and keeps the books of those that do not: what they left open is settled for them.

At the start before the listeners open, then all the while where other processes share the database. A process that was
cut off from the database, as all of them are when it is away, takes nobody for dead before the others had the time to
show themselves again.
"""

import asyncio
import contextlib
import datetime as dt
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.recovery import recover
from proxy.store.boots import LEASE_S, Boot, Boots, Other, here, is_gone
from proxy.store.database import StorageError
from proxy.store.ledger import Ledger
from proxy.upstream import Sidecar
from sidecar.jsonlog import JsonLog

BEAT_S: Final = 5.0
FORGET_EVERY_S: Final = 3600.0
PAUSE_S: Final = 0.05
# For how long the rows of a sidecar that is not ours are left to those who can ask it.
PATIENCE_S: Final = 600.0


class Forgets(Protocol):
    """What deletes old requests; see `proxy.store.retention.Retention`."""

    async def delete_some(self, now: dt.datetime) -> int: ...


@dataclass(frozen=True, slots=True)
class Trade:
    """What a keeper works with. `shared`: others write to the same database."""

    boots: Boots
    ledger: Ledger
    sidecars: Sequence[Sidecar]
    clock: Clock
    log: JsonLog
    shared: bool


class Keeper:
    """One life's lease, and the watch over the others. Mutable: `_steady_since_s`, since when no beat has failed."""

    def __init__(self, boot_id: str, trade: Trade, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._boot_id = boot_id
        self._trade = trade
        self._pause = pause
        self._steady_since_s = math.inf

    async def begin(self) -> None:
        """Settle what the dead left, and begin to live. Raises StorageError."""
        place = await asyncio.to_thread(here)
        await self._take_over(place)
        trade = self._trade
        await trade.boots.begin(Boot(self._boot_id, os.getpid(), trade.clock.now(), place))
        self._steady_since_s = trade.clock.monotonic()

    def end(self) -> None:
        """It ends in order. Not waited for: the writer, which closes after this, sees it to the disk."""
        _ = self._trade.boots.end(self._boot_id, self._trade.clock.now())

    async def run(self) -> None:
        """Beat, and look after the others, for ever."""
        place = await asyncio.to_thread(here)
        while True:
            await self._pause(BEAT_S)
            try:
                await self._trade.boots.beat(self._boot_id)
                if self._trade.shared:
                    await self._take_over(place)
            except StorageError:
                # The writer has told of it.
                self._steady_since_s = math.inf
            else:
                self._steady_since_s = min(self._steady_since_s, self._trade.clock.monotonic())

    async def _take_over(self, place: str | None) -> None:
        trade = self._trade
        trusts_lapses = not trade.shared or trade.clock.monotonic() - self._steady_since_s >= LEASE_S
        dead = [
            other
            for other in await trade.boots.others(self._boot_id)
            if self._is_dead(other, place, trusts_lapses=trusts_lapses)
        ]
        await asyncio.gather(*(trade.boots.keep(other, self._boot_id) for other in dead))
        if dead:
            trade.log.warning("proxies_found_dead", count=len(dead))
        patience_s = PATIENCE_S if trade.shared else 0.0
        await recover(trade.ledger, trade.sidecars, trade.clock, trade.log, patience_s=patience_s)
        await trade.boots.end_kept(self._boot_id, trade.clock.now())

    def _is_dead(self, other: Other, place: str | None, *, trusts_lapses: bool) -> bool:
        return (other.lapsed and trusts_lapses) or is_gone(other, place)


async def keep_log(
    retention: Forgets, clock: Clock, log: JsonLog, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Delete what is older than the request log is to be, at the start and every hour, for ever."""
    while True:
        deleted = 0
        with contextlib.suppress(StorageError):
            while some := await retention.delete_some(clock.now()):
                deleted += some
                # What runs comes first.
                await pause(PAUSE_S)
        if deleted:
            log.info("old_requests_deleted", count=deleted)
        await pause(FORGET_EVERY_S)
