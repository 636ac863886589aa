"""A request that was let in: what is set aside for it, until it is settled or nothing of it ran.

The meters move at once and in step with what the ledger is told; the ledger writes when it writes. A grant ends once,
whatever is raised and whoever is cancelled, because ending it is synchronous.
"""

import asyncio
import datetime as dt
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from proxy import twice
from proxy.admission.estimate import Sizing
from proxy.admission.meters import Hold
from proxy.asked import UpstreamRefusedError
from proxy.clock import Clock
from proxy.exchange import Arrival, Ending, Estimate, NotRecordedError, Outcome
from proxy.patience import done_within, either_within
from proxy.policy.schema import POLICY_HEADER, CacheScope
from proxy.store.claims import Claim, ClaimTakenError
from proxy.store.posting import Entry, Settled, Voided
from proxy.store.standing import Monthly, QuotaExceededError
from proxy.verdict import Remark
from sidecar.wire.errors import ApiError

Written = asyncio.Future[None]
# nginx's status for a client that left before its answer.
CLIENT_CLOSED: Final = 499


class Books(Protocol):
    """The ledger, as a grant writes it: `proxy.store.ledger.Ledger`.

    A future is done once it is on disk. It may be dropped: the writer counts what fails, and retries what ends a row.
    """

    def reserve(self, entry: Entry, claimed: tuple[Claim, ...], limits: Monthly) -> Written: ...
    def shrink(self, request_id: str, est_tokens: int) -> Written: ...
    def settle(self, settled: Settled) -> Written: ...
    def void(self, voided: Voided) -> Written: ...


class Terms(msgspec.Struct, frozen=True):
    """What a grant is made of, beside what it holds. `revision` is the policy's that it was given under."""

    sizing: Sizing
    arrival: Arrival
    clock: Clock
    storage_s: float
    revision: str
    remarks: tuple[Remark, ...] = ()


class Grant:
    """What `forward` calls `Reserved` and `settle` calls `Chargeable`. Used as `async with`.

    Mutable: `estimate`, which only ever shrinks, and `_ended`, the write that ended it.
    """

    def __init__(self, terms: Terms, estimate: Estimate, hold: Hold, books: Books, reserved: Written) -> None:
        self._terms = terms
        self._hold = hold
        self._books = books
        self._reserved = reserved
        self._ended: Written | None = None
        self.estimate = estimate

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What limits said that let it pass all the same."""
        return self._terms.remarks

    @property
    def priority(self) -> int:
        """The tier's, for the sidecar's scheduler."""
        return self._terms.sizing.tier.priority

    @property
    def weight(self) -> float:
        """The tier's, for the sidecar's scheduler."""
        return self._terms.sizing.tier.weight

    @property
    def cache_scope(self) -> CacheScope:
        """The tier's: who shares computed prompts."""
        return self._terms.sizing.tier.cache_scope

    @property
    def ended(self) -> bool:
        """Whether it is settled or void."""
        return self._ended is not None

    def headers(self) -> dict[str, str]:
        """The rate limit headers for the answer's head, as they stand now, and the policy that let it in."""
        return {**self._hold.headers(), POLICY_HEADER: self._terms.revision}

    async def durable(self, unless: asyncio.Future[None] | None = None) -> None:
        """Return when the reservation is on disk, or as soon as `unless` is done.

        Raises NotRecordedError if that fails or takes too long, ApiError 429 if another process has used up the quota
        meanwhile, or says what was claimed already.
        """
        if unless is not None:
            await either_within(self._reserved, unless, limit_s=self._terms.storage_s)
            if unless.done():
                return
        if not await done_within(self._reserved, self._terms.storage_s) or self._reserved.cancelled():
            raise NotRecordedError
        exc = self._reserved.exception()
        if isinstance(exc, QuotaExceededError):
            raise self._hold.exceeded(exc, self._terms.clock.now()) from exc
        if isinstance(exc, ClaimTakenError):
            raise twice.taken(exc) from exc
        if exc is not None:
            raise NotRecordedError from exc

    def counted(self, prompt_tokens: int) -> None:
        """The exact prompt is known: what was reserved too much is given back."""
        exact = self._terms.sizing.exact(prompt_tokens)
        if self.ended or exact.total >= self.estimate.total:
            return
        self.estimate = exact
        self._hold.shrink(exact.total)
        _ = self._books.shrink(self._terms.arrival.request_id, exact.total)

    def settle(
        self, outcome: Outcome, *, ended: dt.datetime, duration_ms: int, ttft_ms: int | None, forced: bool = False
    ) -> Written:
        """End it with what was used; without usage nothing ran, and nothing is owed. Only the first time counts.

        The future is done when the ledger has it on disk. The meters move as soon as the reservation is decided: of
        one that is refused nothing was reserved, and nothing is settled.
        """
        if self._ended is not None:
            return self._ended
        usage = outcome.usage
        if usage is None:
            return self._void(outcome, ended, duration_ms)
        used = usage.prompt_tokens + usage.completion_tokens
        self._ended = self._books.settle(
            Settled(
                request_id=self._terms.arrival.request_id,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                ended=ended,
                duration_ms=duration_ms,
                ttft_ms=ttft_ms,
                status=outcome.status,
                reason=outcome.ending.value,
                finish_reason=outcome.finish_reason,
                error_code=outcome.error_code,
                forced=forced,
            )
        )
        if self._reserved.done():
            self._release(used)
        else:
            self._reserved.add_done_callback(lambda _: self._release(used))
        return self._ended

    def _release(self, used: int) -> None:
        """The request is over, and its reservation decided."""
        if self._reserved.cancelled() or self._reserved.exception() is not None:
            self._hold.void()
        else:
            self._hold.settle(used)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever leaves without having settled ran nothing. No `await` here: there is nothing to cancel."""
        if self._ended is not None:
            return
        duration_s = self._terms.clock.monotonic() - self._terms.arrival.monotonic_s
        _ = self._void(_outcome_of(exc), self._terms.clock.now(), round(duration_s * 1000))

    def _void(self, outcome: Outcome, ended: dt.datetime, duration_ms: int) -> Written:
        self._hold.void()
        self._ended = self._books.void(
            Voided(
                request_id=self._terms.arrival.request_id,
                ended=ended,
                duration_ms=duration_ms,
                status=outcome.status,
                reason=outcome.ending.value,
                error_code=outcome.error_code,
            )
        )
        return self._ended


def _outcome_of(exc: BaseException | None) -> Outcome:
    """The end of a request of which nothing ran, by what was raised."""
    if isinstance(exc, UpstreamRefusedError):
        return Outcome(exc.status, Ending.UPSTREAM_REFUSED, None, "", exc.code)
    if isinstance(exc, ApiError):
        return Outcome(exc.status, Ending.UPSTREAM_FAILED, None, "", exc.code)
    if isinstance(exc, asyncio.CancelledError):
        return Outcome(CLIENT_CLOSED, Ending.CLIENT_GONE, None, "")
    return Outcome(500, Ending.INTERNAL, None, "")
