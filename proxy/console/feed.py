"""Requests as they begin and end, for whoever watches. No content, and no name that a client made up.

A viewer that is slow loses what it missed, is told how much, and sees what runs anew: no request ever waits for one.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from proxy.exchange import Arrival, Call, Outcome, Principal
from proxy.record import Ended
from proxy.verdict import RefusedError
from sidecar.wire.errors import unavailable

MOST_VIEWERS: Final = 16
# What waits for one viewer at most, and how many ended requests a new one is shown.
MOST_PENDING: Final = 500
MOST_RECENT: Final = 100
# What happens within this time is one event.
TOGETHER_S: Final = 0.2
PING_S: Final = 15.0
# Then a viewer comes anew, and shows its key: one that was revoked watches no longer.
LIFE_S: Final = 60.0


class Seen(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request. `began` and `ended` are UTC, in seconds; one that has no end runs."""

    id: str
    began: float
    endpoint: str
    key_id: str | None = None
    tier: str | None = None
    model: str | None = None
    stream: bool = False
    ended: float | None = None
    status: int | None = None
    ending: str | None = None
    error_code: str | None = None
    rule: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: float | None = None
    duration_ms: float | None = None


class News(msgspec.Struct, frozen=True):
    """One event. `whole`: these are all that run, and the last that ended; `lost`: so many were not told of."""

    requests: list[Seen]
    whole: bool = False
    lost: int = 0


class Viewer:
    """What one viewer is still to be told. Mutable: `_pending`; `_lost`, how many did not fit; `_some`."""

    def __init__(self, whole: Callable[[], list[Seen]]) -> None:
        self._whole = whole
        self._pending: list[Seen] = []
        self._lost = 0
        self._some = asyncio.Event()

    def tell(self, seen: Seen) -> None:
        if len(self._pending) < MOST_PENDING:
            self._pending.append(seen)
        else:
            self._lost += 1
        self._some.set()

    def wake(self) -> None:
        """There is nothing more to come."""
        self._some.set()

    async def news(self) -> News:
        """What happened since the last call, once something has."""
        await self._some.wait()
        await asyncio.sleep(TOGETHER_S)
        self._some.clear()
        pending, lost = self._pending, self._lost
        self._pending, self._lost = [], 0
        return News(self._whole(), whole=True, lost=lost) if lost else News(pending)


# A request as it is kept until somebody looks: its `Seen` takes ten times as long to make. Never its call, which holds
# the body: when it came, who asked, where, of which model, whether for a stream, and once it is over its end, which
# rule refused it, when its first byte left and how long it took.
_Glimpse = tuple[
    Arrival, Principal | None, str, str | None, bool, Outcome | None, str | None, float | None, float | None
]


class Feed:
    """The requests, told to viewers; see `proxy.record.Watches`.

    Mutable: `_running`, by id; `_recent`, those that ended last; `_viewers`; `_closed`, once the server ends.
    """

    def __init__(self) -> None:
        self._running: dict[str, _Glimpse] = {}
        self._recent: deque[_Glimpse] = deque(maxlen=MOST_RECENT)
        self._viewers: set[Viewer] = set()
        self._closed = False

    def began(self, arrival: Arrival, principal: Principal, call: Call, model: str) -> None:
        glimpse = (arrival, principal, call.endpoint.value, model, call.stream, None, None, None, None)
        self._running[arrival.request_id] = glimpse
        if self._viewers:
            self._tell(_seen(glimpse))

    def ended(self, ended: Ended, duration_s: float) -> None:
        self._running.pop(ended.arrival.request_id, None)
        error, call = ended.error, ended.call
        glimpse = (
            ended.arrival,
            ended.principal,
            ended.endpoint,
            ended.known_model,
            call is not None and call.stream,
            ended.outcome,
            error.rule if isinstance(error, RefusedError) else None,
            ended.first_byte_s,
            duration_s,
        )
        self._recent.append(glimpse)
        if self._viewers:
            self._tell(_seen(glimpse))

    def _tell(self, seen: Seen) -> None:
        for viewer in self._viewers:
            viewer.tell(seen)

    def whole(self) -> list[Seen]:
        """All that run, and the last that ended, the oldest first."""
        return [_seen(glimpse) for glimpse in (*self._recent, *self._running.values())]

    @contextlib.contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """Raises ApiError 503 if there are as many as there may be."""
        if self._closed or len(self._viewers) >= MOST_VIEWERS:
            raise unavailable(
                f"{MOST_VIEWERS} pages watch the requests already. Close one of them.",
                code="too_many_viewers",
                retry_after_s=5,
            )
        made = Viewer(self.whole)
        self._viewers.add(made)
        try:
            yield made
        finally:
            self._viewers.discard(made)

    def close(self) -> None:
        """End what is being watched: the server ends."""
        self._closed = True
        for viewer in self._viewers:
            viewer.wake()

    async def show(self, request: web.BaseRequest, headers: dict[str, str], write_s: float) -> web.StreamResponse:
        """Tell a browser of the requests until it leaves, or is to come anew. Raises ApiError 503."""
        with self.viewer() as viewer:
            response = EventSourceResponse(headers=headers, send_timeout=write_s, ping_interval=PING_S)
            await response.prepare(request)
            # A browser that left, or that does not read, is not told that it did.
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with response, asyncio.timeout(LIFE_S):
                    news = News(self.whole(), whole=True)
                    while not self._closed:
                        await response.send(msgspec.json.encode(news).decode())
                        news = await viewer.news()
            return response


def _seen(glimpse: _Glimpse) -> Seen:
    arrival, principal, endpoint, model, stream, outcome, rule, first_byte_s, duration_s = glimpse
    seen = Seen(
        id=arrival.request_id,
        began=arrival.utc.timestamp(),
        endpoint=endpoint,
        key_id=principal.key_id if principal else None,
        tier=principal.tier if principal else None,
        model=model,
        stream=stream,
    )
    if outcome is None or duration_s is None:
        return seen
    usage, first_s = outcome.usage, None if first_byte_s is None else first_byte_s - arrival.monotonic_s
    return msgspec.structs.replace(
        seen,
        ended=seen.began + duration_s,
        status=outcome.status,
        ending=outcome.ending.value,
        error_code=outcome.error_code,
        rule=rule,
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        ttft_ms=None if first_s is None else round(first_s * 1000, 1),
        duration_ms=round(duration_s * 1000, 1),
    )
