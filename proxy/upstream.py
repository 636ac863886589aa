"""The sidecars: who is there and ready, which one runs a request, and what else they are asked."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from proxy import uplink
from proxy.asked import Answer, Asked, UpstreamLostError, absent, heard, translated
from proxy.exchange import Call, Question
from proxy.load import Load, Workload, together
from proxy.settings import Timeouts, Upstream
from proxy.ticket import Ticket
from sidecar.jsonlog import JsonLog
from sidecar.wire import internal
from sidecar.wire.errors import ApiError, unavailable
from sidecar.wire.internal import Count, Endpoint, ModelState, RequestState, State
from sidecar.wire.slots import RequestUsage, SlotReader, embedding_slots

POLL_READY_S: Final = 1.0
POLL_ABSENT_S: Final = 0.25
UNREACHABLE: Final = "unreachable"


@dataclass(frozen=True, slots=True)
class Slots:
    """What the usage slots hold of a request; nothing at all of one that ended before `evicted_ns` (UTC).

    `written`: an engine has them, so that they may change.
    """

    usage: RequestUsage | None
    evicted_ns: int
    written: bool = True


class Sidecar:
    """One sidecar behind one Unix socket. What is raised of its answers is `proxy.asked`'s.

    Mutable: `state` (the last one it told, or None while it cannot be reached), `models` (the last ones it named),
    `slots_path` (where it last said they are), `outstanding_tokens` (reserved by the requests it runs for us),
    `workload`, `_uplinks` (the connections to it), `_asked` (set when the state is to be looked at now).
    """

    def __init__(
        self, settings: Upstream, timeouts: Timeouts, log: JsonLog, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = settings.name
        self.state: State | None = None
        self.models: Mapping[str, ModelState] | None = None
        self.slots_path: Path | None = None
        self.outstanding_tokens = 0
        self.workload = Workload(clock)
        self._socket = settings.socket
        self._timeouts = timeouts
        self._uplinks = uplink.Uplinks(settings.socket, timeouts.connect_s)
        self._log = log
        self._asked = asyncio.Event()

    @property
    def ready(self) -> bool:
        return self.state is not None and self.state.ready

    @property
    def reason(self) -> str:
        """Why it is not ready; empty if it is."""
        if self.state is None:
            return UNREACHABLE
        return "" if self.state.ready else self.state.reason

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections to it have a request, and how many wait for one."""
        return self._uplinks.counts

    async def __aenter__(self) -> Self:
        await self.refresh()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._uplinks.close()

    async def watch(self) -> None:
        """Keep `state` fresh, for ever."""
        while True:
            self._asked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_READY_S if self.ready else POLL_ABSENT_S):
                    await self._asked.wait()
            await self.refresh()

    async def refresh(self) -> None:
        """Ask for the state now."""
        was_ready = self.ready
        self._uplinks.close(uplink.FREE_S)
        try:
            body = await self._ask("GET", "/internal/state", self._timeouts.state_s)
            self.state = msgspec.json.decode(body, type=State)
        except (ApiError, UpstreamLostError, msgspec.MsgspecError):
            self.state = None
        else:
            self.slots_path = Path(self.state.slots_path)
            if self.state.models or self.models is None:
                self.models = {model.id: model for model in self.state.models}
        self.workload.told(self.state)
        if self.ready != was_ready:
            self._log.info("upstream_ready" if self.ready else "upstream_lost", upstream=self.name, reason=self.reason)

    async def count(self, call: Call) -> Count:
        """Raises ApiError."""
        try:
            named = {internal.ENDPOINT: call.endpoint.value}
            async with self._asked_for("POST", "/internal/count", self._timeouts.count_s, call.body, named) as answer:
                body = await answer.whole()
            return msgspec.json.decode(body, type=Count)
        except (UpstreamLostError, msgspec.MsgspecError) as exc:
            raise absent() from exc

    async def tokenizer(self, question: Question, request_id: str) -> tuple[bytes, str | None]:
        """What the model's tokenizer answers, and the fields that were ignored if any were. Raises ApiError."""
        path, named = question.endpoint.value, {internal.REQUEST_ID: request_id}
        try:
            async with self._asked_for("POST", path, self._timeouts.count_s, question.body, named) as answer:
                return await answer.whole(), answer.ignored
        except UpstreamLostError as exc:
            raise absent() from exc

    async def cancel(self, request_id: str) -> RequestState:
        """End a request, and say what it used once the engine let go. Raises ApiError or UpstreamLostError."""
        body = await self._ask("DELETE", f"/internal/requests/{request_id}", self._timeouts.cancel_s)
        try:
            return msgspec.json.decode(body, type=RequestState)
        except msgspec.MsgspecError as exc:
            raise UpstreamLostError from exc

    async def slots(self, request_id: str) -> Slots:
        """What the usage slots say of a request. Raises SlotFileError."""
        # Beside the socket as we reach it first: in another container the sidecar's own path may mean nothing here.
        beside = Path(self._socket).with_suffix(".slots")
        return await asyncio.to_thread(_read_slots, [beside, self.slots_path or beside], request_id)

    async def metrics(self) -> bytes:
        """The sidecar's metrics page. Raises ApiError or UpstreamLostError."""
        return await self._ask("GET", "/metrics", self._timeouts.state_s)

    async def openapi(self) -> bytes:
        """The OpenAPI document of what the sidecar answers. Raises ApiError or UpstreamLostError."""
        return await self._ask("GET", "/internal/openapi", self._timeouts.state_s)

    @contextlib.asynccontextmanager
    async def open(self, call: Call, ticket: Ticket) -> AsyncIterator[Asked]:
        """Run a call: it is sent on entry; leaving before its answer's end breaks the connection off.

        Raises ApiError if nothing ran, UpstreamLostError if something may have run.
        """
        # An answer that is not streamed has its head when it is complete.
        headers = ticket.headers(None if call.stream else self._timeouts.first_byte_s)
        self.outstanding_tokens += ticket.max_total_tokens
        try:
            # An encoder has no queue, and the engine's is not filled by what is embedded.
            with self.workload.running(0 if call.endpoint is Endpoint.EMBEDDINGS else call.choices):
                sent = await self._send("POST", call.endpoint.value, call.body, headers)
                try:
                    yield Asked(sent, self._timeouts)
                finally:
                    self._uplinks.give_back(sent)
        except (UpstreamLostError, ApiError):
            self._asked.set()
            raise
        finally:
            self.outstanding_tokens -= ticket.max_total_tokens

    async def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> uplink.Uplink:
        """Raises ApiError; then nothing was sent."""
        try:
            return await self._uplinks.send(uplink.request(method, path, headers, body))
        except uplink.AbsentError as exc:
            raise absent() from exc

    async def _ask(self, method: str, path: str, limit_s: float) -> bytes:
        """One short exchange. Raises ApiError or UpstreamLostError."""
        async with self._asked_for(method, path, limit_s, None, {}) as answer:
            return await answer.whole()

    @contextlib.asynccontextmanager
    async def _asked_for(
        self, method: str, path: str, limit_s: float, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """The answer of one short exchange, all of which has `limit_s`. Raises ApiError or UpstreamLostError."""
        if body is not None:
            headers = {"content-type": "application/json", **headers}
        with translated():
            async with asyncio.timeout(limit_s):
                sent = await self._send(method, path, body, headers)
                try:
                    yield await heard(sent, limit_s, self._timeouts.between_bytes_s)
                finally:
                    self._uplinks.give_back(sent)


class Upstreams:
    """All sidecars, their watchers, and the choice among them. Mutable: the task group of the watchers."""

    def __init__(self, sidecars: list[Sidecar]) -> None:
        self.sidecars = sidecars
        self._stack = contextlib.AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for sidecar in self.sidecars:
            await self._stack.enter_async_context(sidecar)
            self._watchers.append(asyncio.create_task(sidecar.watch(), name=f"watch {sidecar.name}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._stack.aclose()

    @property
    def ready(self) -> bool:
        """Whether any sidecar can run a request now."""
        return any(sidecar.ready for sidecar in self.sidecars)

    def served(self) -> list[ModelState]:
        """Each model once, in order of id, ready or not."""
        found = {model.id: model for sidecar in self.sidecars for model in (sidecar.models or {}).values()}
        return [found[name] for name in sorted(found)]

    def find(self, model: str) -> ModelState | None:
        """What is known of a model, also while no sidecar that serves it is ready."""
        for sidecar in sorted(self.sidecars, key=lambda sidecar: not sidecar.ready):
            if sidecar.models and model in sidecar.models:
                return sidecar.models[model]
        return None

    def named(self, name: str) -> Sidecar | None:
        return next((sidecar for sidecar in self.sidecars if sidecar.name == name), None)

    def check_known(self, model: str) -> None:
        """Raises ApiError 503 for a model nobody named, as long as some sidecar has not yet said what it serves."""
        silent = {sidecar.reason for sidecar in self.sidecars if not sidecar.models}
        if silent and self.find(model) is None:
            raise _not_ready(silent)

    def check_told(self) -> None:
        """Raises ApiError 503 if no sidecar has ever said what it serves."""
        if not any(sidecar.models for sidecar in self.sidecars):
            raise _not_ready({sidecar.reason for sidecar in self.sidecars})

    def load(self, model: str) -> Load:
        """What the ready sidecars that serve the model have to do, together."""
        return together(
            [sidecar.workload.load for sidecar in self.sidecars if sidecar.models and model in sidecar.models]
        )

    def choose(self, model: str) -> Sidecar:
        """The ready sidecar that serves the model and has the least to do. Raises ApiError 503."""
        serving = [sidecar for sidecar in self.sidecars if sidecar.models and model in sidecar.models]
        ready = [sidecar for sidecar in serving if sidecar.ready]
        if not ready:
            raise _not_ready({sidecar.reason for sidecar in serving})
        return min(ready, key=lambda sidecar: sidecar.outstanding_tokens)


def _not_ready(reasons: set[str]) -> ApiError:
    if "loading" in reasons:
        return unavailable("The model is being loaded. Please try again.", code="model_loading", retry_after_s=5)
    if reasons == {"draining"}:
        return unavailable("The model server is shutting down.", code="shutting_down", retry_after_s=5)
    return absent()


def _read_slots(paths: Sequence[Path], request_id: str) -> Slots:
    """The model's slots, and those of the encoder beside it if there is one."""
    model = next((path for path in paths if path.exists()), paths[-1])
    found = _read_file(model, request_id)
    encoder = embedding_slots(model)
    if found.usage is not None or not encoder.exists():
        return found
    other = _read_file(encoder, request_id)
    return Slots(other.usage, max(found.evicted_ns, other.evicted_ns), found.written or other.written)


def _read_file(path: Path, request_id: str) -> Slots:
    with SlotReader(path) as reader:
        # In this order: what is read after the writer's end is the last word.
        written = reader.is_written
        return Slots(reader.usage(request_id), reader.heartbeat().evicted_ns, written)
