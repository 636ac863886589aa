"""The end of every request, written down once: its metrics and its one line in the access log.

The ledger row is the settling room's; here is what people and dashboards read. No prompt, no answer, no name that a
client made up.
"""

import contextlib
import datetime as dt
from typing import Final, Protocol

import msgspec

from proxy.clock import Clock
from proxy.exchange import Arrival, Call, Ending, Outcome, Principal
from proxy.metrics import NO_TIER, OTHER, Metrics
from proxy.verdict import SHADOW, RefusedError, Remark
from sidecar.jsonlog import Field, JsonLog
from sidecar.wire.errors import INVALID_REQUEST, SERVER_ERROR, SERVICE_UNAVAILABLE, ApiError

# The error types of WIRE's table: what a foreign upstream makes up is `_other`.
ERROR_TYPES: Final = frozenset(
    {INVALID_REQUEST, SERVER_ERROR, SERVICE_UNAVAILABLE, "requests", "tokens", "insufficient_quota"}
)
TOUCH_EVERY_S: Final = 60.0
MOST_TOUCHED: Final = 10_000
_UPSTREAM: Final = frozenset({Ending.UPSTREAM_FAILED, Ending.UPSTREAM_REFUSED})
_LEFT: Final = frozenset({Ending.CLIENT_GONE, Ending.CLIENT_STALLED})


class Rooms(msgspec.Struct, frozen=True):
    """How long a request spent in each room, in seconds; None for a room it did not come through."""

    identify_s: float | None = None
    admit_s: float | None = None
    forward_s: float | None = None
    settle_s: float | None = None


class Ended(msgspec.Struct, frozen=True):
    """All there is to say of a finished request.

    `endpoint` is a route's template or `_other`, `known_model` a served model or `_other`. `called_s` to `settling_s`
    are moments, in monotonic seconds: a sidecar is asked, its answer begins to reach the client, all of it is here.
    """

    arrival: Arrival
    endpoint: str
    outcome: Outcome
    principal: Principal | None = None
    call: Call | None = None
    known_model: str | None = None
    admitted: bool = False
    remarks: tuple[Remark, ...] = ()
    upstream: str | None = None
    error: ApiError | None = None
    called_s: float | None = None
    first_byte_s: float | None = None
    settling_s: float | None = None
    rooms: Rooms = Rooms()


class Touches(Protocol):
    """Where it is kept when a key was last used; see `proxy.store.keys.Keys`."""

    def touch(self, key_id: str, moment: dt.datetime) -> object: ...


class Watches(Protocol):
    """Whoever wants to see requests as they come and go; see `proxy.console.feed.Feed`."""

    def began(self, arrival: Arrival, principal: Principal, call: Call, model: str) -> None: ...
    def ended(self, ended: Ended, duration_s: float) -> None: ...


class Traced(Protocol):
    """Where spans are made; see `proxy.telemetry.Telemetry`."""

    def ended(self, ended: Ended, duration_s: float) -> None: ...


class Record:
    """The room. Mutable: `_touched`, when the use of a key was last written down, in monotonic seconds."""

    def __init__(
        self,
        metrics: Metrics,
        keys: Touches,
        log: JsonLog,
        clock: Clock,
        *,
        watch: Watches | None = None,
        traces: Traced | None = None,
    ) -> None:
        """`traces` of None sends no spans."""
        self._traces = traces
        self._metrics = metrics
        self._keys = keys
        self._watch = watch
        self._log = log
        self._clock = clock
        self._touched: dict[str, float] = {}

    def streaming(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, a stream is open."""
        return self._metrics.open_streams.track_inprogress()

    def begin(self, arrival: Arrival, principal: Principal, call: Call, model: str) -> None:
        """A request was let in."""
        if self._watch is not None:
            self._watch.began(arrival, principal, call, model)

    def finish(self, ended: Ended) -> None:
        """The one line and the one count of a request."""
        begun_s = self._clock.monotonic()
        duration_s = begun_s - ended.arrival.monotonic_s
        self._count(ended, duration_s)
        if ended.principal is not None:
            self._touch(ended.principal.key_id, begun_s)
        self._log.info("request", **_line(ended, duration_s))
        if self._watch is not None:
            self._watch.ended(ended, duration_s)
        if self._traces is not None and ended.arrival.trace.sampled:
            self._traces.ended(ended, duration_s)
        self._metrics.overhead.observe(self._clock.monotonic() - begun_s, "record")

    def _touch(self, key_id: str, now_s: float) -> None:
        """Once a minute is often enough to know when a key was last used."""
        if now_s - self._touched.get(key_id, -TOUCH_EVERY_S) < TOUCH_EVERY_S:
            return
        if len(self._touched) >= MOST_TOUCHED:
            self._touched.clear()
        self._touched[key_id] = now_s
        self._keys.touch(key_id, self._clock.now())

    def _count(self, ended: Ended, duration_s: float) -> None:
        metrics, outcome = self._metrics, ended.outcome
        model = ended.known_model or OTHER
        tier = ended.principal.tier if ended.principal else NO_TIER
        stream = ended.call is not None and ended.call.stream
        metrics.requests.add(1, ended.endpoint, model, tier, str(outcome.status))
        metrics.duration.observe(duration_s, ended.endpoint, "true" if stream else "false")
        if ended.principal is not None:
            metrics.active.saw(ended.principal.key_id)
        if ended.first_byte_s is not None:
            metrics.first_token.observe(ended.first_byte_s - ended.arrival.monotonic_s, model)
        if ended.arrival.trace.sampled:
            self._exemplify(ended, duration_s, model, stream)
        self._count_tokens(ended, model, tier)
        self._count_ending(ended)
        rooms = ended.rooms
        for phase, spent_s in (
            ("identify", rooms.identify_s),
            ("admit", rooms.admit_s),
            ("forward", rooms.forward_s),
            ("settle", rooms.settle_s),
        ):
            if spent_s is not None:
                metrics.overhead.observe(spent_s, phase)

    def _exemplify(self, ended: Ended, duration_s: float, model: str, stream: bool) -> None:
        """Lead from a slow bucket to the trace of a request that fell into it."""
        metrics, trace_id, utc_s = self._metrics, ended.arrival.trace.trace_id, self._clock.now().timestamp()
        metrics.duration.exemplify(duration_s, trace_id, utc_s, ended.endpoint, "true" if stream else "false")
        if ended.first_byte_s is not None:
            metrics.first_token.exemplify(ended.first_byte_s - ended.arrival.monotonic_s, trace_id, utc_s, model)

    def _count_tokens(self, ended: Ended, model: str, tier: str) -> None:
        usage = ended.outcome.usage
        if usage is None:
            return
        tokens = self._metrics.tokens
        tokens.add(usage.prompt_tokens, model, tier, "input")
        tokens.add(usage.cached_tokens, model, tier, "cached_input")
        tokens.add(usage.completion_tokens, model, tier, "output")
        tokens.add(usage.reasoning_tokens, model, tier, "reasoning")

    def _count_ending(self, ended: Ended) -> None:
        outcome, error = ended.outcome, ended.error
        for remark in ended.remarks:
            self._metrics.decisions.add(1, remark.rule, remark.decision)
        if ended.admitted:
            self._metrics.decisions.add(1, "admission", "allow")
        elif isinstance(error, RefusedError):
            self._metrics.decisions.add(1, error.rule, "refuse")
        if outcome.ending in _LEFT:
            phase = "before_first_token" if ended.first_byte_s is None else "streaming"
            self._metrics.disconnects.labels(phase).inc()
        elif outcome.ending is not Ending.COMPLETE:
            kind = error.type if error is not None else SERVER_ERROR
            self._metrics.errors.labels(kind if kind in ERROR_TYPES else OTHER, _origin(ended)).inc()


def _origin(ended: Ended) -> str:
    """Who is to blame: the client, the policy, the sidecar or we."""
    ending, error = ended.outcome.ending, ended.error
    if ending in _UPSTREAM:
        return "upstream" if ended.outcome.status >= 500 or ended.outcome.status == 200 else "client"
    if isinstance(error, RefusedError) or ending is Ending.REVOKED:
        return "policy"
    # Also before anything is read of it: there was no memory for it, or it broke what reads it.
    return "client" if ending is Ending.REFUSED and error is not None and error.status < 500 else "internal"


def _line(ended: Ended, duration_s: float) -> dict[str, Field]:
    arrival, outcome, principal, call = ended.arrival, ended.outcome, ended.principal, ended.call
    usage, rooms = outcome.usage, ended.rooms
    first_s = None if ended.first_byte_s is None else ended.first_byte_s - arrival.monotonic_s
    return {
        "request_id": arrival.request_id,
        "client_request_id": arrival.client_request_id,
        "trace_id": arrival.trace.trace_id,
        "span_id": arrival.trace.span_id,
        "address": arrival.address,
        "endpoint": ended.endpoint,
        "account_id": principal.account_id if principal else None,
        "key_id": principal.key_id if principal else None,
        "tier": principal.tier if principal else None,
        "model": ended.known_model,
        "stream": call.stream if call else None,
        "choices": call.choices if call else None,
        "upstream": ended.upstream,
        "status": outcome.status,
        "ending": outcome.ending.value,
        "finish_reason": outcome.finish_reason or None,
        "error_code": outcome.error_code,
        "error_type": ended.error.type if ended.error else None,
        "rule": ended.error.rule if isinstance(ended.error, RefusedError) else None,
        "shadow": ",".join(remark.rule for remark in ended.remarks if remark.decision == SHADOW) or None
        if ended.remarks
        else None,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "duration_ms": _ms(duration_s),
        "ttft_ms": _ms(first_s),
        "identify_ms": _ms(rooms.identify_s),
        "admit_ms": _ms(rooms.admit_s),
        "forward_ms": _ms(rooms.forward_s),
        "settle_ms": _ms(rooms.settle_s),
    }


def _ms(seconds: float | None) -> float | None:
    # To the microsecond; `round` to three places takes five times as long.
    return None if seconds is None else round(seconds * 1_000_000) / 1000


class CommitWatch:
    """Told of the ledger's commits by its writer; see `proxy.store.writer.Observer`. Stateless."""

    def __init__(self, metrics: Metrics, log: JsonLog) -> None:
        self._metrics = metrics
        self._log = log

    def committed(self, seconds: float, operations: int) -> None:
        self._metrics.ledger_commit.observe(seconds)
        self._metrics.ledger_batch.observe(operations)

    def failed(self, error: Exception, operations: int) -> None:
        self._metrics.ledger_failures.inc()
        self._log.exception("ledger_commit_failed", error, count=operations)


class ValkeyWatch:
    """Told how it is with Valkey; see `proxy.admission.shared`. Mutable: `_up`, as last logged."""

    def __init__(self, metrics: Metrics, log: JsonLog) -> None:
        self._metrics = metrics
        self._log = log
        self._up: bool | None = None

    def told(self, up: bool, proxies: int) -> None:
        """`proxies`: how many share their limits, as last known."""
        self._metrics.valkey_up.set(up)
        self._metrics.proxies.set(proxies)
        if up == self._up:
            return
        self._up = up
        if up:
            self._log.info("valkey_reached", proxies=proxies)
        else:
            self._log.warning("valkey_lost", proxies=proxies, hint="Each proxy goes by its share of every limit.")
