"""What the hallway needs of each room it leads through, so that a test can stand in for any of them.

No code: the rooms are in `identity`, `admission`, `forward`, `settle` and `responses`, and `house` puts them in place.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from proxy.admission.turn import Turn
from proxy.exchange import Arrival, Call, Head, Principal, Question
from proxy.forward import Reserved
from proxy.once import Guard
from proxy.policy.schema import CacheScope
from proxy.settle import Chargeable
from proxy.signature import Signature
from proxy.store.claims import Claim
from proxy.verdict import RefusedError, Remark
from sidecar.wire.internal import Count, ModelState


class Granted(Reserved, Chargeable, Protocol):
    """A grant of `proxy.admission.grant`: held for as long as the request runs."""

    @property
    def priority(self) -> int: ...
    @property
    def remarks(self) -> tuple[Remark, ...]: ...
    @property
    def weight(self) -> float: ...
    @property
    def cache_scope(self) -> CacheScope: ...
    def headers(self) -> dict[str, str]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Pass(Protocol):
    """A pass of `proxy.admission.meters`: held while a tokenizer is asked. Entering it gives the rate limit headers."""

    @property
    def remarks(self) -> tuple[Remark, ...]: ...
    def __enter__(self) -> dict[str, str]: ...
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Identifies(Protocol):
    """See `proxy.identity.Identify`."""

    async def identify(self, authorization: str | None, address: str) -> Principal:
        """Raises ApiError 401, 403, 429 or 503."""


class Guards(Protocol):
    """See `proxy.once.Once`."""

    def read(self, head: Head, authorization: str | None, arrival: Arrival) -> Signature | None:
        """Raises ApiError 401 or 429."""

    async def expect(
        self, principal: Principal, head: Head, signature: Signature | None, arrival: Arrival
    ) -> Guard | None:
        """Raises ApiError 400, 401, 403, 409, 429 or 503."""


class Admits(Protocol):
    """See `proxy.admission.gate.Admission`."""

    def headers(self, principal: Principal, model: str | None) -> dict[str, str]:
        """The rate limit headers as they stand now. Raises RefusedError 403."""

    def check(self, principal: Principal, call: Call, model: ModelState | None) -> ModelState:
        """Raises ApiError 400, 403 or 404."""

    async def admit(
        self,
        principal: Principal,
        call: Call,
        arrival: Arrival,
        model: ModelState | None,
        counter: Callable[[Call], Awaitable[Count]],
        *,
        turn: Turn,
        upstream: str,
        claims: tuple[Claim, ...] = (),
    ) -> Granted:
        """Raises ApiError; then nothing was consumed."""

    async def turn(self, principal: Principal, model: str) -> Turn:
        """Raises ApiError 403, 429 or 503."""

    async def check_limits(self, principal: Principal, model: str) -> None:
        """Raises ApiError 403, 429 or 503."""

    def refused(
        self, principal: Principal, call: Call, arrival: Arrival, model: ModelState | None, error: RefusedError
    ) -> None: ...

    async def admit_question(
        self, principal: Principal, question: Question, arrival: Arrival, model: ModelState | None
    ) -> Pass:
        """Raises ApiError 403, 404 or 429; then nothing was consumed."""


class Misuse(Protocol):
    """See `proxy.admission.abuse.Abuse`."""

    def came(self, principal: Principal, address: str) -> None:
        """Raises ApiError 403."""

    def asked(self, principal: Principal, call: Call) -> AbstractContextManager[tuple[Remark, ...]]:
        """Raises ApiError 429."""


class Stores(Protocol):
    """See `proxy.responses.Responses`."""

    async def continued(self, principal: Principal, call: Call) -> Call:
        """Raises ApiError 400, 413 or 503."""

    def keeping(self, principal: Principal, call: Call) -> Callable[[bytes], Awaitable[None]] | None: ...
