"""What the front asks of its engine, as protocols: `sidecar.supervisor` is the real one, tests bring a fake."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sidecar.grammars.compiler import CompiledGrammar
from sidecar.wire.frames import Delta, Ready, Step, Submit
from sidecar.wire.internal import RequestState


class Sequences(Protocol):
    """The sequences of one accepted request, as one stream of deltas. Leaving its `async with` ends what still runs."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> Delta:
        """Raises EngineLostError if the engine is gone."""

    def watch(self, told: Callable[[Delta], None]) -> None:
        """Tell of each delta when the engine gives it, however late it is fetched. Before anything is awaited."""

    def cancel(self, index: int | None = None, generated: int | None = None) -> None: ...


class Gauged(Protocol):
    """How the engine stands."""

    @property
    def ready(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def info(self) -> Ready | None: ...
    @property
    def restarts(self) -> int: ...
    @property
    def engine_pid(self) -> int: ...
    @property
    def last_step(self) -> Step | None: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def heartbeat_age_s(self) -> float | None: ...
    @property
    def slots_path(self) -> Path: ...


class Engine(Gauged, Protocol):
    """The engine: how it stands, and what it does."""

    def open(self, request_id: str, submits: list[Submit], grammar: CompiledGrammar | None = None) -> Sequences:
        """Queue a request, and first the grammar that its submits name. Raises ApiError 503."""

    def usage(self, request_id: str) -> RequestState:
        """What a running or recent request has used."""

    async def cancel_request(self, request_id: str) -> RequestState:
        """End a request; returns once the engine has let go of it."""
