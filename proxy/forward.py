"""From the sidecar to the client: open the upstream request, relay its answer, settle before its end leaves.

The two promises kept here: the first byte leaves only after the reservation is durable, the last ones only after the
settlement is, and the answer too if it is to be stored. Whatever breaks off in between, the relay says how it ended and
the settling room finds out what is owed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from proxy.asked import Answer, Asked, UpstreamLostError
from proxy.client import LeftError
from proxy.clock import Clock
from proxy.exchange import Arrival, Call, Ending, NotRecordedError, Outcome
from proxy.ticket import Ticket
from proxy.upstream import Sidecar
from proxy.usage import AnswerError, Sifter, read_body
from sidecar.wire.errors import INVALID_REQUEST, SERVER_ERROR, ApiError, unavailable
from sidecar.wire.internal import IGNORED, Usage

CLIENT_CLOSED: Final = 499


class Client(Protocol):
    """What the relay needs of the client's end; see `proxy.client.Client`."""

    @property
    def arrival(self) -> Arrival: ...
    @property
    def answered(self) -> bool: ...
    def announce(self, headers: dict[str, str]) -> None: ...
    def present(self) -> contextlib.AbstractAsyncContextManager[None]: ...
    async def answer(self, status: int, body: bytes) -> None: ...
    def send(self, events: bytes) -> bool: ...
    async def caught_up(self) -> None: ...
    async def finish(self, events: bytes) -> None: ...
    async def fail(self, event: bytes) -> None: ...


class Reserved(Protocol):
    """What the relay needs of a grant."""

    async def durable(self, unless: asyncio.Future[None] | None = None) -> None:
        """Return when the reservation is on disk, or as soon as `unless` is done. Raises ApiError, and
        NotRecordedError where it cannot be told.
        """

    def counted(self, prompt_tokens: int) -> None:
        """The exact prompt is known: what was reserved too much is given back."""


class Settling(Protocol):
    """The settling room, for one request; see `proxy.settle.Settlement`."""

    async def complete(self, usage: Usage) -> Outcome:
        """Return when the settlement is on disk. Raises ApiError 503 if that takes too long."""

    async def interrupted(self, sidecar: Sidecar, status: int, ending: Ending, error_code: str | None) -> Outcome:
        """Stop what runs, find out what it used, settle that."""

    async def unrecorded(self, sidecar: Sidecar, error: NotRecordedError) -> None:
        """The same where the reservation may not be there: then nothing is settled."""


class Run(msgspec.Struct, frozen=True):
    """One request on its way through this room.

    `keep`, if its answer is to be stored, is given the whole of it or the end of its stream, and returns when it is on
    disk. It raises ApiError.
    """

    call: Call
    ticket: Ticket
    sidecar: Sidecar
    reserved: Reserved
    client: Client
    settling: Settling
    timings: "Timings"
    keep: Callable[[bytes], Awaitable[None]] | None = None


@dataclass(slots=True)
class Timings:
    """When things happened, in the clock's monotonic seconds. Mutable: each is set once, as it happens.

    `first_byte_s` is a stream's: a whole answer has no beginning that a client could read before its end.
    """

    upstream_head_s: float | None = None
    durable_s: float | None = None
    first_byte_s: float | None = None
    settling_s: float | None = None
    settled_s: float | None = None


class Delivery(msgspec.Struct, frozen=True):
    """How a request ended, and the error that the client is still to be told, if no answer has begun."""

    outcome: Outcome
    error: ApiError | None = None


class Forward:
    """The room. Stateless."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def run(self, run: Run) -> Delivery:
        """Raises ApiError if the sidecar refused or nothing ran: then nothing is owed."""
        try:
            return await (self._stream(run) if run.call.stream else self._whole(run))
        except LeftError as left:
            return await self._left(run, left.ending)
        except UpstreamLostError as lost:
            return await self._lost(run, timed_out=lost.timed_out, told=False)
        except NotRecordedError as error:
            # The sidecar was asked already, and a commit whose word was lost may be on disk all the same.
            await run.settling.unrecorded(run.sidecar, error)
            raise
        except ApiError:
            raise
        except Exception:
            # A fault of ours is no free answer: what ran is owed, and the fault goes on to the boundary.
            await run.settling.interrupted(run.sidecar, 500, Ending.INTERNAL, None)
            raise

    async def _whole(self, run: Run) -> Delivery:
        async with run.client.present():
            body = await self._body(run)
            usage = _usage_of(run.call, body)
        outcome = await self._settle(run, usage, body)
        with contextlib.suppress(LeftError):
            await run.client.answer(200, body)
        return Delivery(outcome)

    async def _body(self, run: Run) -> bytes:
        """A whole answer. It has its head when it is complete: a reservation that fails meanwhile ends it.

        An answer that is sooner than the disk is settled with its reservation, in one commit.
        """
        async with run.sidecar.open(run.call, run.ticket) as asked:
            await run.reserved.durable(unless=asked.over())
            answer = await self._answer(run, asked)
            body = await answer.whole()
        run.timings.durable_s = self._clock.monotonic()
        return body

    async def _stream(self, run: Run) -> Delivery:
        sifter = Sifter()
        try:
            async with run.client.present(), run.sidecar.open(run.call, run.ticket) as asked:
                answer = await self._answer(run, asked)
                await self._durable(run)
                await self._relay(run, answer, sifter)
        except (UpstreamLostError, AnswerError) as lost:
            timed_out = isinstance(lost, UpstreamLostError) and lost.timed_out
            return await self._lost(run, timed_out=timed_out, told=sifter.failed)
        if sifter.usage is None or not sifter.complete:
            return await self._lost(run, timed_out=False, told=sifter.failed)
        try:
            outcome = await self._settle(run, sifter.usage, sifter.held)
        except ApiError as error:
            if not run.client.answered:
                raise
            await run.client.fail(run.client.arrival.error_event(error))
            return Delivery(Outcome(200, Ending.INTERNAL, sifter.usage, sifter.usage.finish_reason, error.code))
        with contextlib.suppress(LeftError):
            await run.client.finish(sifter.held)
        return Delivery(outcome)

    async def _relay(self, run: Run, answer: Answer, sifter: Sifter) -> None:
        """Pass events on until the answer is complete or the sidecar ends it."""
        client, timings = run.client, run.timings

        def pass_on(piece: bytes) -> bool:
            """Whether the next piece may follow at once."""
            events = sifter.feed(piece)
            if events:
                if timings.first_byte_s is None and _has_data(events):
                    timings.first_byte_s = self._clock.monotonic()
                if not client.send(events):
                    return False
            return not sifter.complete

        while not sifter.complete and await answer.each(pass_on):
            if not sifter.complete:
                await client.caught_up()

    async def _durable(self, run: Run) -> None:
        await run.reserved.durable()
        run.timings.durable_s = self._clock.monotonic()

    async def _settle(self, run: Run, usage: Usage, told: bytes) -> Outcome:
        """What is owed first: an answer that cannot be stored has run all the same.

        Whatever settles it comes after its reservation: that is decided by then, and may have been refused.
        """
        run.timings.settling_s = self._clock.monotonic()
        try:
            outcome = await run.settling.complete(usage)
            await run.reserved.durable()
            if run.keep is not None:
                await run.keep(told)
            return outcome
        finally:
            run.timings.settled_s = self._clock.monotonic()

    async def _answer(self, run: Run, asked: Asked) -> Answer:
        """Its head is here. Raises UpstreamRefusedError, UpstreamLostError."""
        answer = await asked.answer()
        run.timings.upstream_head_s = self._clock.monotonic()
        # A whole answer is complete when its head is here, and settled at once: that gives back everything.
        if run.call.stream and (prompt_tokens := answer.prompt_tokens) is not None:
            run.reserved.counted(prompt_tokens)
        if answer.ignored is not None:
            run.client.announce({IGNORED: answer.ignored})
        return answer

    async def _left(self, run: Run, ending: Ending) -> Delivery:
        """The client is gone, or must go: the sidecar stops, and what it produced is owed."""
        error = told_on_leaving(ending)
        if error is None:
            return Delivery(await run.settling.interrupted(run.sidecar, CLIENT_CLOSED, ending, None))
        return await self._broken(run, ending, error, told=False)

    async def _lost(self, run: Run, *, timed_out: bool, told: bool) -> Delivery:
        """The sidecar broke off. `told`: its own error event has reached the client."""
        if timed_out:
            error = ApiError(504, "The model server took too long.", type=SERVER_ERROR, code="timeout")
        else:
            error = unavailable("The model server was lost.", code="upstream_unavailable", retry_after_s=1)
        return await self._broken(run, Ending.UPSTREAM_FAILED, error, told=told)

    async def _broken(self, run: Run, ending: Ending, error: ApiError, *, told: bool) -> Delivery:
        answered = run.client.answered
        if answered:
            await run.client.fail(b"" if told else run.client.arrival.error_event(error))
        status = 200 if answered else error.status
        outcome = await run.settling.interrupted(run.sidecar, status, ending, error.code)
        return Delivery(outcome, None if answered else error)


def told_on_leaving(ending: Ending) -> ApiError | None:
    """What a client is told whose exchange we ended early; None if it is the client that left."""
    if ending is Ending.SHUTTING_DOWN:
        return unavailable("The server is shutting down.", code="server_shutting_down", retry_after_s=1)
    if ending is Ending.REVOKED:
        return ApiError(401, "The API key was revoked or has expired.", type=INVALID_REQUEST, code="invalid_api_key")
    return None


def _has_data(events: bytes) -> bool:
    return events.startswith(b"data:") or b"\ndata:" in events


def _usage_of(call: Call, body: bytes) -> Usage:
    try:
        return read_body(body, call.endpoint)
    except AnswerError as exc:
        raise UpstreamLostError from exc
