"""The ids of requests; and W3C Trace Context: read strictly, made when absent, handed on to the sidecar.

No exporter, no sampling decision. A header that breaks the grammar counts as absent.
Source: https://www.w3.org/TR/trace-context/ (Level 1).
"""

import datetime as dt
import re
import secrets
from typing import Final

from proxy.exchange import Trace

# version, trace id, parent id, flags: 55 characters in all.
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_TRACESTATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
_TRACE_BYTES: Final = 16
_SPAN_BYTES: Final = 8
_SAMPLED: Final = 1
_OWN_BYTES: Final = 6


def request_id(now: dt.datetime) -> str:
    """A new one. It begins with its time, to the millisecond, as UUIDs of version 7 do (RFC 9562, 6.11): rows that are
    written together are then beside each other in the database's index.
    """
    return f"req_{int(now.timestamp() * 1000):012x}{secrets.token_hex(_OWN_BYTES)}"


def begin(traceparent: str | None, tracestate: str | None) -> Trace:
    """The trace of a request: the caller's, with a span of our own in it, or a new one that is not sampled."""
    trace_id, span_id = _new_ids()
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == "ff" or not match[2].strip("0") or not match[3].strip("0"):
        return Trace(trace_id, span_id, sampled=False, tracestate="")
    state = tracestate if tracestate is not None and _TRACESTATE.fullmatch(tracestate) else ""
    return Trace(match[2], span_id, sampled=bool(int(match[4], 16) & _SAMPLED), tracestate=state)


def headers(trace: Trace) -> dict[str, str]:
    """What the next hop is told."""
    told = {"traceparent": f"00-{trace.trace_id}-{trace.span_id}-{'01' if trace.sampled else '00'}"}
    if trace.tracestate:
        told["tracestate"] = trace.tracestate
    return told


def _new_ids() -> tuple[str, str]:
    """A trace's id and a span's, of which none may be zero."""
    made = secrets.token_hex(_TRACE_BYTES + _SPAN_BYTES)
    trace_id, span_id = made[: 2 * _TRACE_BYTES], made[2 * _TRACE_BYTES :]
    return (trace_id, span_id) if trace_id.strip("0") and span_id.strip("0") else _new_ids()
