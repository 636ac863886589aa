"""The ids of requests; and W3C Trace Context: read strictly, made when absent, handed on to the sidecar.

No exporter, no sampling decision. A header that breaks the grammar counts as absent.
"""

import datetime as dt
import re
import secrets
from typing import Final

from multidict import MultiMapping

from proxy.exchange import Trace
from sidecar.wire.trace_context import SPAN_BYTES, TRACE_BYTES, new_span_id, read_parent

_TRACESTATE: Final = re.compile(r"[\t\x20-\x7e]{1,512}")
_OWN_BYTES: Final = 6


def request_id(now: dt.datetime) -> str:
    """A new one. It begins with its time, to the millisecond, as UUIDs of version 7 do (RFC 9562, 6.11): rows that are
    written together are then beside each other in the database's index.
    """
    return f"req_{int(now.timestamp() * 1000):012x}{secrets.token_hex(_OWN_BYTES)}"


def begin(headers: MultiMapping[str]) -> Trace:
    """The trace of a request: the caller's, with a span of our own in it, or a new one that is not sampled."""
    trace_id, span_id = _new_ids()
    parent = read_parent(headers.get("traceparent"))
    if parent is None:
        return Trace(trace_id, span_id, sampled=False, tracestate="")
    # Several fields are one list (W3C Trace Context, 3.3.1).
    told = ",".join(headers.getall("tracestate", ()))
    state = told if _TRACESTATE.fullmatch(told) else ""
    return Trace(parent.trace_id, span_id, parent.sampled, state, parent_id=parent.span_id)


def decided(trace: Trace, *, sampled: bool) -> Trace:
    """The same where spans are sent: whether this one's are, and with them a span of the call to the sidecar."""
    call_id = new_span_id() if sampled else ""
    return Trace(trace.trace_id, trace.span_id, sampled, trace.tracestate, trace.parent_id, call_id)


def headers(trace: Trace) -> dict[str, str]:
    """What the next hop is told."""
    told = {"traceparent": f"00-{trace.trace_id}-{trace.call_id or trace.span_id}-{'01' if trace.sampled else '00'}"}
    if trace.tracestate:
        told["tracestate"] = trace.tracestate
    return told


def _new_ids() -> tuple[str, str]:
    """A trace's id and a span's, of which none may be zero."""
    made = secrets.token_hex(TRACE_BYTES + SPAN_BYTES)
    trace_id, span_id = made[: 2 * TRACE_BYTES], made[2 * TRACE_BYTES :]
    return (trace_id, span_id) if trace_id.strip("0") and span_id.strip("0") else _new_ids()
