"""After a crash: the reservations that a life of the proxy left open, each settled by what its sidecar says.

Who is dead, and when this runs, is `keeper`'s to say. A sidecar that is away cannot hold it up: its usage slots are
read instead, and when the time is over what is left is settled at its estimate, marked as forced.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.exchange import Ending
from proxy.settle import UsageUnknownError, produced
from proxy.store.posting import Entry, Settled, Voided
from proxy.upstream import Sidecar
from sidecar.jsonlog import JsonLog
from sidecar.wire.internal import Usage

LIMIT_S: Final = 10.0
AT_ONCE: Final = 16
# What the ledger says of a request whose proxy died: nobody was told how it ended.
REASON: Final = Ending.INTERNAL.value
STATUS: Final = 500


class Books(Protocol):
    """The ledger, as recovery uses it: `proxy.store.ledger.Ledger`."""

    async def open_rows(self) -> list[Entry]: ...
    def settle(self, settled: Settled) -> asyncio.Future[None]: ...
    def void(self, voided: Voided) -> asyncio.Future[None]: ...


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many orphans ended in which way."""

    settled: int = 0
    voided: int = 0
    forced: int = 0


async def recover(
    books: Books, sidecars: Sequence[Sidecar], clock: Clock, log: JsonLog, *, patience_s: float = 0.0
) -> Recovered:
    """Settle every orphan, and return when that is on disk. Raises StorageError.

    One of a sidecar that is none of these is left for `patience_s` to somebody who can ask it.
    """
    known, now = {sidecar.name for sidecar in sidecars}, clock.now()
    left = now - dt.timedelta(seconds=patience_s)
    orphans = [entry for entry in await books.open_rows() if entry.upstream in known or entry.created <= left]
    if not orphans:
        return Recovered()
    found = await _ask_all(orphans, sidecars)
    ends = [_end(entry, usage, clock.now()) for entry, usage in zip(orphans, found, strict=True)]
    await asyncio.gather(*(books.void(end) if isinstance(end, Voided) else books.settle(end) for end in ends))
    voided = sum(isinstance(end, Voided) for end in ends)
    forced = sum(isinstance(end, Settled) and end.forced for end in ends)
    recovered = Recovered(len(ends) - voided - forced, voided, forced)
    log.warning(
        "orphans_settled", settled=recovered.settled, voided=recovered.voided, forced=recovered.forced, total=len(ends)
    )
    return recovered


async def _ask_all(orphans: Sequence[Entry], sidecars: Sequence[Sidecar]) -> list[Usage | UsageUnknownError | None]:
    """What each used; None if it never ran; the error if nobody knows, or not in time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(entry: Entry) -> Usage | UsageUnknownError | None:
        async with gate:
            return await _used(entry, sidecars)

    tasks = [asyncio.ensure_future(ask(entry)) for entry in orphans]
    _, late = await asyncio.wait(tasks, timeout=LIMIT_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return [UsageUnknownError() if task in late else task.result() for task in tasks]


async def _used(entry: Entry, sidecars: Sequence[Sidecar]) -> Usage | UsageUnknownError | None:
    sidecar = next((sidecar for sidecar in sidecars if sidecar.name == entry.upstream), None)
    if sidecar is None:
        # It was taken out of the configuration, and with it the way to ask.
        return UsageUnknownError()
    try:
        return await produced(sidecar, entry.request_id, entry.created)
    except UsageUnknownError as unknown:
        return unknown


def _end(entry: Entry, used: Usage | UsageUnknownError | None, now: dt.datetime) -> Settled | Voided:
    duration_ms = max(0, round((now - entry.created).total_seconds() * 1000))
    if used is None:
        return Voided(entry.request_id, now, duration_ms, STATUS, REASON)
    forced = isinstance(used, UsageUnknownError)
    # An estimate does not say which part of it is the prompt; the sum is what is charged.
    usage = Usage(0, entry.est_tokens) if isinstance(used, UsageUnknownError) else used
    return Settled(
        request_id=entry.request_id,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        ended=now,
        duration_ms=duration_ms,
        ttft_ms=None,
        status=STATUS,
        reason=REASON,
        forced=forced,
    )
