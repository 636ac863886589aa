"""Trace headers: taken when right, replaced when not."""

import datetime as dt
import re

import pytest
from multidict import CIMultiDict

from proxy import tracing

NOW = dt.datetime(2026, 11, 26, 12, 0, 0, 999_000, tzinfo=dt.UTC)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_ids_of_requests_are_in_the_order_of_their_milliseconds_and_none_comes_twice() -> None:
    moments = [NOW + dt.timedelta(milliseconds=number) for number in range(3)]
    ids = [tracing.request_id(moment) for moment in moments for _ in range(100)]
    assert len(set(ids)) == len(ids)
    assert [name[:16] for name in sorted(ids)] == [name[:16] for name in ids]
    assert all(re.fullmatch("req_[0-9a-f]{24}", name) for name in ids)


def given(parent: str | None, *states: str) -> CIMultiDict[str]:
    headers = CIMultiDict([("TraceState", state) for state in states])
    return headers if parent is None else CIMultiDict([("traceparent", parent), *headers.items()])


def test_several_fields_of_tracestate_are_one_list() -> None:
    assert tracing.begin(given(f"00-{TRACE}-{PARENT}-01", "a=1", "b=2,\tc=3")).tracestate == "a=1,b=2,\tc=3"


def test_a_right_header_is_continued_with_a_span_of_our_own() -> None:
    trace = tracing.begin(given(f"00-{TRACE}-{PARENT}-01", "vendor=1"))
    assert (trace.trace_id, trace.sampled, trace.tracestate) == (TRACE, True, "vendor=1")
    assert trace.span_id != PARENT
    assert tracing.headers(trace) == {"traceparent": f"00-{TRACE}-{trace.span_id}-01", "tracestate": "vendor=1"}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        f" 00-{TRACE}-{PARENT}-01",
    ],
)
def test_a_wrong_header_counts_as_absent(header: str | None) -> None:
    trace = tracing.begin(given(header, "vendor=1"))
    assert trace.trace_id != TRACE
    assert len(trace.trace_id) == 32
    assert len(trace.span_id) == 16
    assert (trace.sampled, trace.tracestate) == (False, "")
    assert "tracestate" not in tracing.headers(trace)


@pytest.mark.parametrize("state", ["", "x" * 513, "a=1\r\nx: y", "é=1"])
def test_a_wrong_tracestate_is_dropped_alone(state: str) -> None:
    trace = tracing.begin(given(f"00-{TRACE}-{PARENT}-00", state))
    assert (trace.trace_id, trace.tracestate, trace.sampled) == (TRACE, "", False)
