"""What a request owes, once it is over: the upstream's own figure when the answer is whole, the truth of the sidecar or
of its usage slots when it is not, the estimate, marked as forced, when neither can be had.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable
from typing import Final, Protocol

import msgspec

from proxy.asked import UpstreamLostError
from proxy.clock import Clock
from proxy.exchange import Arrival, Ending, Estimate, NotRecordedError, Outcome
from proxy.patience import done_within
from proxy.upstream import Sidecar
from sidecar.wire.errors import ApiError, unavailable
from sidecar.wire.internal import Usage
from sidecar.wire.slots import SlotFileError

# A killed sidecar's engine notices when its step is over, and lets go of the slots. Longer than this is not waited.
SLOT_POLL_S: Final = 0.05
SLOT_POLLS: Final = 80
NS: Final = 1_000_000_000


class Chargeable(Protocol):
    """What the settling room needs of a grant."""

    @property
    def estimate(self) -> Estimate: ...

    def settle(
        self, outcome: Outcome, *, ended: dt.datetime, duration_ms: int, ttft_ms: int | None, forced: bool = False
    ) -> Awaitable[None]: ...


class FirstByte(Protocol):
    """When the first byte left, in monotonic seconds; None if none did."""

    @property
    def first_byte_s(self) -> float | None: ...


class UsageUnknownError(Exception):
    """Neither the sidecar nor its usage slots can say what a request used."""


class Settlement(msgspec.Struct, frozen=True):
    """Settles one request, once."""

    grant: Chargeable
    arrival: Arrival
    timings: FirstByte
    clock: Clock
    storage_s: float

    async def complete(self, usage: Usage) -> Outcome:
        """The answer is whole. Returns when that is on disk; raises ApiError 503 if it takes too long."""
        outcome = Outcome(200, Ending.COMPLETE, usage, usage.finish_reason)
        if not await self._is_on_disk(self._settle(outcome, forced=False)):
            raise unavailable("The request cannot be recorded now.", code="storage_unavailable", retry_after_s=2)
        return outcome

    async def interrupted(self, sidecar: Sidecar, status: int, ending: Ending, error_code: str | None) -> Outcome:
        """The answer is not whole: stop what runs, and settle what it used. Never raises."""
        outcome, settling = await self._stopped(sidecar, status, ending, error_code)
        await self._is_on_disk(settling)
        return outcome

    async def unrecorded(self, sidecar: Sidecar, error: NotRecordedError) -> None:
        """The reservation may be on disk or not: stop what runs. What it used is owed if it is. Never raises.

        Whether that reaches the disk is not waited for: the client has waited for the storage already.
        """
        await self._stopped(sidecar, error.status, Ending.INTERNAL, error.code)

    async def _stopped(
        self, sidecar: Sidecar, status: int, ending: Ending, error_code: str | None
    ) -> tuple[Outcome, asyncio.Future[None]]:
        forced = False
        try:
            usage = await produced(sidecar, self.arrival.request_id, self.arrival.utc)
        except UsageUnknownError:
            estimate, forced = self.grant.estimate, True
            usage = Usage(estimate.prompt_tokens, estimate.output_tokens * estimate.choices)
        outcome = Outcome(status, ending, usage, "", error_code)
        return outcome, self._settle(outcome, forced=forced)

    def _settle(self, outcome: Outcome, *, forced: bool) -> asyncio.Future[None]:
        now_s = self.clock.monotonic()
        first_s = self.timings.first_byte_s
        return asyncio.ensure_future(
            self.grant.settle(
                outcome,
                ended=self.clock.now(),
                duration_ms=round((now_s - self.arrival.monotonic_s) * 1000),
                ttft_ms=None if first_s is None else round((first_s - self.arrival.monotonic_s) * 1000),
                forced=forced,
            )
        )

    async def _is_on_disk(self, settling: asyncio.Future[None]) -> bool:
        """Whether the settlement reached the disk in time; it goes on trying in any case."""
        return await done_within(settling, self.storage_s) and settling.exception() is None


async def produced(sidecar: Sidecar, request_id: str, begun: dt.datetime) -> Usage | None:
    """Stop a request and say what it used; None if it never ran. Raises UsageUnknownError."""
    with contextlib.suppress(ApiError, UpstreamLostError):
        state = await sidecar.cancel(request_id)
        if state.known:
            return Usage(state.prompt_tokens, state.completion_tokens)
    return await _from_slots(sidecar, request_id, begun)


async def _from_slots(sidecar: Sidecar, request_id: str, begun: dt.datetime) -> Usage | None:
    """Read the slots until they cannot change any more: the engine may outlive its front by a step."""
    used: Usage | None = None
    for _ in range(SLOT_POLLS):
        try:
            slots = await sidecar.slots(request_id)
        except SlotFileError as exc:
            raise UsageUnknownError from exc
        slot = slots.usage
        if slot is None:
            if slots.evicted_ns > begun.timestamp() * NS:
                # The slots have forgotten requests as young as this one: no trace is no proof that it never ran.
                raise UsageUnknownError
            return None
        used = Usage(slot.prompt_tokens, slot.completion_tokens)
        if not (slot.running and slots.written):
            break
        await asyncio.sleep(SLOT_POLL_S)
    return used
