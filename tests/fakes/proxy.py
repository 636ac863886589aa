"""Stand-ins for the proxy's rooms: each does what a test tells it, and remembers what was asked of it."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Self

from msgspec.structs import replace

from proxy.client import LeftError
from proxy.exchange import (
    Arrival,
    Call,
    Ending,
    Estimate,
    NotRecordedError,
    Outcome,
    Principal,
    Question,
    Trace,
)
from proxy.policy.schema import CacheScope
from proxy.ticket import Ticket
from proxy.upstream import Slots
from proxy.verdict import Remark
from sidecar.wire.internal import Endpoint, RequestState, Usage
from sidecar.wire.slots import RequestUsage, SlotFileError

NOON: Final = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
TRACE: Final = Trace("a" * 32, "b" * 16, sampled=False, tracestate="")
ARRIVAL: Final = Arrival("req_1", None, TRACE, "192.0.2.1", 1000.0, NOON)
PRINCIPAL: Final = Principal("acct_1", "key1", "pro", None)
TICKET: Final = Ticket("req_1", "acct_1", 2.5, 0, "a:acct_1", 100, 50, TRACE)


def principal(**fields: Any) -> Principal:
    """`PRINCIPAL` with some fields of its own."""
    return replace(PRINCIPAL, **fields)


def call(*, stream: bool = True) -> Call:
    return Call(Endpoint.CHAT, "m", stream, 1, 8, "max_tokens", 1, b"{}")


class FakeClock:
    """Both clocks, moved together by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.seconds

    def now(self) -> dt.datetime:
        return NOON + dt.timedelta(seconds=self.seconds)


class FakeGrant:
    """A grant whose disk is as quick as the test lets it be: `durable_error`, `settle_error`, or a gate to wait at."""

    def __init__(self) -> None:
        self.estimate = Estimate(7, 8, 1, exact=True)
        self.priority = 3
        self.weight = 2.5
        self.cache_scope: CacheScope = "account"
        self.remarks: tuple[Remark, ...] = ()
        self.durable_gate: asyncio.Event | None = None
        self.durable_error: Exception | None = None
        self.settle_gate: asyncio.Event | None = None
        self.settle_error: Exception | None = None
        self.prompts: list[int] = []
        self.settled: list[tuple[Outcome, dict[str, Any]]] = []
        self.entered = self.left = 0

    def headers(self) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": "10"}

    async def durable(self, unless: asyncio.Future[bytes] | None = None) -> None:
        if self.durable_gate is not None:
            opened = asyncio.ensure_future(self.durable_gate.wait())
            await asyncio.wait({opened, *([unless] if unless else [])}, return_when=asyncio.FIRST_COMPLETED)
            opened.cancel()
        if unless is not None and unless.done():
            return
        if self.durable_error is not None:
            raise self.durable_error

    def counted(self, prompt_tokens: int) -> None:
        self.prompts.append(prompt_tokens)

    async def settle(self, outcome: Outcome, **more: Any) -> None:
        if self.settle_gate is not None:
            await self.settle_gate.wait()
        if self.settle_error is not None:
            raise self.settle_error
        self.settled.append((outcome, more))

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left += 1


class FakeClient:
    """A client's end in memory. `deaf` is why it cannot be written to; `leave` ends it as the real one does."""

    def __init__(self) -> None:
        self.arrival = ARRIVAL
        self.events: list[tuple[str, bytes]] = []
        self.announced: dict[str, str] = {}
        self.answers: list[tuple[int, bytes]] = []
        self.deaf: Ending | None = None
        # Whether it is to be waited for, and how often it was.
        self.slow = False
        self.waits = 0
        self.method, self.target = "POST", "/v1/chat/completions"
        self.sent_headers: dict[str, tuple[str, ...]] = {}
        self.posted = b"{}"
        self.is_known = False
        self._left: Ending | None = None
        self._scope: asyncio.Timeout | None = None

    def known(self) -> None:
        self.is_known = True

    @property
    def answered(self) -> bool:
        return bool(self.events or self.answers)

    @property
    def sent(self) -> bytes:
        return b"".join(data for kind, data in self.events if kind in {"send", "finish"})

    @property
    def last(self) -> str:
        return self.events[-1][0]

    def values(self, name: str) -> tuple[str, ...]:
        return self.sent_headers.get(name, ())

    def announce(self, headers: dict[str, str]) -> None:
        self.announced |= headers

    def leave(self, ending: Ending) -> None:
        self._left = self._left or ending
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        if self._left is not None:
            raise LeftError(self._left)
        try:
            async with asyncio.timeout(None) as self._scope:
                yield
        except TimeoutError:
            if self._left is not None:
                raise LeftError(self._left) from None
            raise
        finally:
            self._scope = None

    async def body(self, check: Callable[[bytes], None] | None = None) -> bytes:
        if check is not None:
            check(self.posted)
        return self.posted

    async def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._hear()
        self.announce(headers or {})
        self.answers.append((status, body))

    def send(self, events: bytes) -> bool:
        self._hear()
        self.events.append(("send", events))
        return not self.slow

    async def caught_up(self) -> None:
        self.waits += 1

    async def finish(self, events: bytes) -> None:
        self._hear()
        self.events.append(("finish", events))

    async def fail(self, event: bytes) -> None:
        self.events.append(("fail", event))

    def _hear(self) -> None:
        if self.deaf is not None:
            raise LeftError(self.deaf)


class FakeAnswer:
    """An answer under way: bytes to give, events to wait for, errors to raise, then the end."""

    def __init__(self, script: Sequence[bytes | asyncio.Event | Exception], ignored: str | None = None) -> None:
        self._script = list(script)
        self.prompt_tokens: int | None = 7
        self.ignored = ignored

    async def piece(self) -> bytes:
        while self._script:
            step = self._script.pop(0)
            if isinstance(step, bytes):
                return step
            if isinstance(step, Exception):
                raise step
            await step.wait()
        return b""

    async def each(self, take: Callable[[bytes], bool]) -> bool:
        while piece := await self.piece():
            if not take(piece):
                return True
        return False

    async def whole(self) -> bytes:
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)


class FakeAsked:
    """A call that was sent: `gate` is waited for before its answer's head, `refusal` raised instead of one.

    Whoever asks whether it is over has it played: then its answer gives what came of that.
    """

    def __init__(self, gate: asyncio.Event | None, refusal: Exception | None, answer: FakeAnswer) -> None:
        self._gate = gate
        self._refusal = refusal
        self._answer = answer
        self._playing: asyncio.Task[bytes] | None = None

    def over(self) -> asyncio.Future[None]:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._playing = asyncio.create_task(self._play())
        self._playing.add_done_callback(lambda _: over.set_result(None))
        return over

    async def answer(self) -> FakeAnswer:
        if self._playing is None:
            return await self._head()
        return FakeAnswer([await self._playing], self._answer.ignored)

    def close(self) -> None:
        if self._playing is not None:
            self._playing.cancel()

    async def _play(self) -> bytes:
        return await (await self._head()).whole()

    async def _head(self) -> FakeAnswer:
        if self._gate is not None:
            await self._gate.wait()
        if self._refusal is not None:
            raise self._refusal
        return self._answer


class FakeUpstream:
    """One sidecar: `script` is its answer, `refusal` what it raises instead of one."""

    def __init__(self, name: str = "local") -> None:
        self.name = name
        self.script: Sequence[bytes | asyncio.Event | Exception] = ()
        self.ignored: str | None = None
        self.refusal: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.opened = self.closed = 0
        self.tickets: list[Ticket] = []
        self.cancelled: list[str] = []
        # What a cancel answers, or raises; what the slots then say, one by one, the last for ever.
        self.cancel_answer: RequestState | Exception = RequestState(False, False, 0, 0)
        self.slot_answers: list[RequestUsage | SlotFileError | None] = [None]
        self.evicted_ns = 0
        # Whether an engine has the slots once they were read as often as there are answers.
        self.slots_written = True

    @contextlib.asynccontextmanager
    async def open(self, _call: Call, ticket: Ticket) -> AsyncIterator[FakeAsked]:
        self.opened += 1
        self.tickets.append(ticket)
        asked = FakeAsked(self.gate, self.refusal, FakeAnswer(self.script, self.ignored))
        try:
            yield asked
        finally:
            asked.close()
            self.closed += 1

    async def count(self, _call: Call) -> Any:
        raise NotImplementedError

    async def tokenizer(self, _question: Question, _request_id: str) -> tuple[bytes, str | None]:
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return b"{}", self.ignored

    async def cancel(self, request_id: str) -> RequestState:
        self.cancelled.append(request_id)
        if isinstance(self.cancel_answer, Exception):
            raise self.cancel_answer
        return self.cancel_answer

    async def slots(self, _request_id: str) -> Slots:
        written = self.slots_written or len(self.slot_answers) > 1
        answer = self.slot_answers.pop(0) if len(self.slot_answers) > 1 else self.slot_answers[0]
        if isinstance(answer, SlotFileError):
            raise answer
        return Slots(answer, self.evicted_ns, written)


class FakeSettling:
    """The settling room: what it was told, and whether the disk takes it."""

    def __init__(self) -> None:
        self.completed: list[Usage] = []
        self.interruptions: list[tuple[int, Ending, str | None]] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def complete(self, usage: Usage) -> Outcome:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.completed.append(usage)
        return Outcome(200, Ending.COMPLETE, usage, usage.finish_reason)

    async def interrupted(self, _sidecar: Any, status: int, ending: Ending, error_code: str | None) -> Outcome:
        self.interruptions.append((status, ending, error_code))
        return Outcome(status, ending, Usage(7, 2), "", error_code)

    async def unrecorded(self, _sidecar: Any, error: NotRecordedError) -> None:
        self.interruptions.append((error.status, Ending.INTERNAL, error.code))
