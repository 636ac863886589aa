"""What a finished request tells a trace: one span of the proxy's own, and one of the model call that it made, if any.

Both are made at the end, of what is known by then, and only of requests that are sampled. No attribute holds what a
client or a model wrote, nor an address.
"""

from typing import Final, Protocol

import msgspec

from proxy import tracing
from proxy.exchange import Call, Ending, Trace
from proxy.record import Ended
from proxy.verdict import RefusedError
from sidecar import spans
from sidecar.spans import Kind, Span, Tracer, Value
from sidecar.wire.internal import Endpoint

_FAULTS: Final = frozenset({Ending.UPSTREAM_FAILED, Ending.INTERNAL, Ending.SHUTTING_DOWN})
# Of an HTTP method that this server does not know: OpenTelemetry's semantic conventions of HTTP.
_OTHER_METHOD: Final = "_OTHER"
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
# How a sidecar makes the id of an answer from that of its request (WIRE 1).
_RESPONSE_IDS: Final = {
    Endpoint.CHAT: "chatcmpl-",
    Endpoint.COMPLETIONS: "cmpl-",
    Endpoint.RESPONSES: "resp_",
    Endpoint.MESSAGES: "msg_",
}


class _Asked(msgspec.Struct):
    """The numbers of a body that a span tells."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


_asked_decoder: Final = msgspec.json.Decoder(_Asked)


class Traces(Protocol):
    """What the public listener and the record are handed where spans are sent."""

    def begun(self, trace: Trace) -> Trace: ...
    def ended(self, ended: Ended, duration_s: float) -> None: ...


class Telemetry:
    """A `Traces`. Stateless."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begun(self, trace: Trace) -> Trace:
        """Decide whether a request is sampled; if it is, the sidecar's span hangs below that of the call."""
        sampled = self._tracer.samples(trace.trace_id, trace.parent_id, parent_sampled=trace.sampled)
        return tracing.decided(trace, sampled=sampled)

    def ended(self, ended: Ended, duration_s: float) -> None:
        """`duration_s` since its arrival."""
        begun_ns = round(ended.arrival.utc.timestamp() * 1e9)

        def at_ns(monotonic_s: float) -> int:
            return begun_ns + round((monotonic_s - ended.arrival.monotonic_s) * 1e9)

        arrival, outcome = ended.arrival, ended.outcome
        trace, end_ns = arrival.trace, begun_ns + round(duration_s * 1e9)
        failed = outcome.status >= 500 or outcome.ending in _FAULTS
        known = arrival.method in _METHODS
        self._tracer.send(
            Span(
                name=f"{arrival.method if known else 'HTTP'} {ended.endpoint}",
                kind=Kind.SERVER,
                trace_id=trace.trace_id,
                span_id=trace.span_id,
                parent_id=trace.parent_id,
                start_ns=begun_ns,
                end_ns=end_ns,
                attributes=_of_request(ended, arrival.method if known else _OTHER_METHOD),
                tracestate=trace.tracestate,
                remote=True,
                failed=failed,
            )
        )
        if ended.call is None or ended.called_s is None:
            return
        first = () if ended.first_byte_s is None else ((spans.ANSWER_BEGINS, at_ns(ended.first_byte_s)),)
        self._tracer.send(
            Span(
                name=f"{spans.OPERATIONS[ended.call.endpoint]} {ended.known_model}",
                kind=Kind.CLIENT,
                trace_id=trace.trace_id,
                span_id=trace.call_id,
                parent_id=trace.span_id,
                start_ns=at_ns(ended.called_s),
                end_ns=end_ns if ended.settling_s is None else at_ns(ended.settling_s),
                attributes=_of_call(ended, ended.call, str(ended.known_model)),
                events=first,
                tracestate=trace.tracestate,
                failed=failed,
            )
        )


def _of_request(ended: Ended, method: str) -> dict[str, Value]:
    told: dict[str, Value] = {
        spans.METHOD: method,
        spans.ROUTE: ended.endpoint,
        spans.STATUS: ended.outcome.status,
        spans.REQUEST_ID: ended.arrival.request_id,
        spans.ENDING: ended.outcome.ending.value,
    }
    if ended.principal is not None:
        told[spans.ACCOUNT_ID] = ended.principal.account_id
        told[spans.KEY_ID] = ended.principal.key_id
        told[spans.TIER] = ended.principal.tier
    if ended.upstream is not None:
        told[spans.UPSTREAM] = ended.upstream
    if isinstance(ended.error, RefusedError):
        told[spans.RULE] = ended.error.rule
    return told | _error_of(ended)


def _of_call(ended: Ended, call: Call, model: str) -> dict[str, Value]:
    told: dict[str, Value] = {
        spans.OPERATION: spans.OPERATIONS[call.endpoint],
        spans.PROVIDER: spans.TOLLHOUSE,
        spans.REQUEST_MODEL: model,
        spans.STREAM: call.stream,
        **_asked(call),
    }
    if call.max_output_tokens:
        told[spans.MAX_TOKENS] = call.max_output_tokens
    if call.choices > 1:
        told[spans.CHOICES] = call.choices
    usage = ended.outcome.usage
    if usage is not None:
        told[spans.INPUT_TOKENS] = usage.prompt_tokens
        told[spans.OUTPUT_TOKENS] = usage.completion_tokens
        told[spans.CACHED_TOKENS] = usage.cached_tokens
        told[spans.REASONING_TOKENS] = usage.reasoning_tokens
    if ended.outcome.ending is Ending.COMPLETE:
        told[spans.RESPONSE_MODEL] = model
        if ended.outcome.finish_reason:
            told[spans.FINISH_REASONS] = [ended.outcome.finish_reason]
        if call.endpoint in _RESPONSE_IDS:
            told[spans.RESPONSE_ID] = _RESPONSE_IDS[call.endpoint] + ended.arrival.request_id.removeprefix("req_")
    return told | _error_of(ended)


def _asked(call: Call) -> dict[str, Value]:
    """Sampling, as the body has it; nothing of a body whose numbers are none, which the sidecar refuses."""
    try:
        asked = _asked_decoder.decode(call.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    given = {spans.TEMPERATURE: asked.temperature, spans.TOP_P: asked.top_p, spans.SEED: asked.seed}
    return {name: value for name, value in given.items() if value is not None}


def _error_of(ended: Ended) -> dict[str, Value]:
    """Why it has no whole answer: an error's code or else its type (docs/errors.md), or how it ended."""
    outcome, error = ended.outcome, ended.error
    if outcome.ending is Ending.COMPLETE:
        return {}
    return {spans.ERROR_TYPE: outcome.error_code or (error.type if error is not None else outcome.ending.value)}
