"""The wait for one's turn among the requests of a key that run at once, where its tier lets requests wait.

Only the waiting is here; who is next is for `concurrency` to say, and whether the rest fits for `gate`, before and
after.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from types import TracebackType
from typing import Protocol, Self, TypeVar

from proxy.admission.concurrency import Lease, Leases

T = TypeVar("T")


class QueueWatch(Protocol):
    """Who is told of waiting; see `proxy.metrics.QueueMetrics`."""

    def waiting(self, turn: Awaitable[T]) -> Awaitable[T]:
        """What awaits this, waits for its turn."""


class Unwatched:
    """For who does not want to know."""

    def waiting(self, turn: Awaitable[T]) -> Awaitable[T]:
        return turn


class Turn:
    """A request's turn. Used as `with`: what was not used of it is given back.

    Where requests may wait it holds its lease from the start; elsewhere it is empty, and the lease is taken with
    everything else. Mutable: `_lease`, until it is used.
    """

    def __init__(self, lease: Lease | None = None) -> None:
        self._lease = lease

    @property
    def held(self) -> bool:
        return self._lease is not None

    def use(self) -> Lease | None:
        """The lease; its release is the caller's from now on."""
        lease, self._lease = self._lease, None
        return lease

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease is not None:
            self._lease.release()


async def wait(leases: Leases, key_id: str, limit: int, wait_s: float) -> Lease | None:
    """A lease, as soon as it is one's turn; None if it is not in time. Whoever is cancelled leaves nothing behind."""
    woken = asyncio.Event()
    place = leases.line_up(key_id, limit, woken.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await woken.wait()
    except BaseException:
        if (lease := leases.step_out(key_id, place)) is not None:
            lease.release()
        raise
    return leases.step_out(key_id, place)
