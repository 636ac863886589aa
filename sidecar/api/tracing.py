"""The spans of a request that the proxy sampled: one of the sidecar's own, and below it what its time went into.

They are made when the request is over. Where no spans are sent, this middleware is not there.
"""

import time
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar import spans
from sidecar.spans import Kind, Span, Tracer, Value
from sidecar.wire.internal import REQUEST_ID, Endpoint, Usage
from sidecar.wire.trace_context import TRACEPARENT_HEADER, Parent, new_span_id, read_parent

_ENDPOINTS: Final = {endpoint.value: endpoint for endpoint in Endpoint}
_LEFT: Final = "client_gone"


@dataclass(frozen=True, slots=True)
class Ran:
    """What the engine did for a request. `ending` is "complete" or what it was aborted for.

    Moments are those of `time.monotonic`: None of what it did not come to.
    """

    model: str
    usage: Usage
    ending: str
    error_code: str | None
    accepted_s: float
    begun_s: float | None
    first_s: float | None
    last_s: float | None


class Traced:
    """One request. Mutable: `ran`, once the engine is done with it."""

    def __init__(self, endpoint: Endpoint, request_id: str, parent: Parent, tracestate: str) -> None:
        self.ran: Ran | None = None
        self._endpoint = endpoint
        self._request_id = request_id
        self._parent = parent
        self._tracestate = tracestate
        self._span_id = new_span_id()
        self._begun_ns, self._begun_s = time.time_ns(), time.monotonic()

    def end(self, tracer: Tracer, status: int | None) -> None:
        """`status` of None: nobody was there any more to be told one."""
        now_s = time.monotonic()
        error = self._error(status)
        tracer.send(
            Span(
                name=f"POST {self._endpoint.value}",
                kind=Kind.SERVER,
                trace_id=self._parent.trace_id,
                span_id=self._span_id,
                parent_id=self._parent.span_id,
                start_ns=self._begun_ns,
                end_ns=self._at_ns(now_s),
                attributes=self._told(status, error),
                tracestate=self._tracestate,
                remote=True,
                failed=error is not None and error != _LEFT and (status is None or not 400 <= status < 500),
            )
        )
        if self.ran is not None:
            self._send_phases(tracer, self.ran)

    def _send_phases(self, tracer: Tracer, ran: Ran) -> None:
        edges = (("queue", ran.accepted_s, ran.begun_s), ("prefill", ran.begun_s, ran.first_s))
        for name, from_s, to_s in (*edges, ("decode", ran.first_s, ran.last_s)):
            if from_s is not None and to_s is not None:
                tracer.send(
                    Span(
                        name=name,
                        kind=Kind.INTERNAL,
                        trace_id=self._parent.trace_id,
                        span_id=new_span_id(),
                        parent_id=self._span_id,
                        start_ns=self._at_ns(from_s),
                        end_ns=self._at_ns(to_s),
                        attributes={},
                        tracestate=self._tracestate,
                    )
                )

    def _at_ns(self, moment_s: float) -> int:
        return self._begun_ns + round((moment_s - self._begun_s) * 1e9)

    def _error(self, status: int | None) -> str | None:
        """An error code of ours, an HTTP status, or that the client left; None for a whole answer."""
        if self.ran is not None:
            return None if self.ran.ending == "complete" else self.ran.error_code or self.ran.ending
        if status is None:
            return _LEFT
        return str(status) if status >= 400 else None

    def _told(self, status: int | None, error: str | None) -> dict[str, Value]:
        told: dict[str, Value] = {
            spans.METHOD: "POST",
            spans.ROUTE: self._endpoint.value,
            spans.REQUEST_ID: self._request_id,
        }
        if status is not None:
            told[spans.STATUS] = status
        if error is not None:
            told[spans.ERROR_TYPE] = error
        if self.ran is not None:
            usage = self.ran.usage
            told[spans.MODEL] = self.ran.model
            told[spans.ENGINE_PROMPT_TOKENS] = usage.prompt_tokens
            told[spans.ENGINE_COMPLETION_TOKENS] = usage.completion_tokens
            told[spans.ENGINE_CACHED_TOKENS] = usage.cached_tokens
            told[spans.ENGINE_FINISH_REASON] = usage.finish_reason
        return told


TRACED: Final = web.RequestKey("traced", Traced)


def tracing(tracer: Tracer) -> Middleware:
    """The middleware around all others."""

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        traced = _begun(request)
        if traced is None:
            return await handler(request)
        request[TRACED] = traced
        status = None
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            traced.end(tracer, status)

    return around


def _begun(request: web.Request) -> Traced | None:
    """None of a request that no proxy sampled."""
    endpoint = _ENDPOINTS.get(request.path)
    headers = request.headers
    parent = read_parent(headers.get(TRACEPARENT_HEADER))
    if endpoint is None or parent is None or not parent.sampled:
        return None
    return Traced(endpoint, headers.get(REQUEST_ID, ""), parent, headers.get("tracestate", ""))
