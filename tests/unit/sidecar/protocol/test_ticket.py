"""What a proxy says in headers is read strictly, and nothing is needed without one."""

from dataclasses import replace

import pytest

from sidecar.protocol.ticket import Ticket, is_request_id, new_request_id, read_ticket
from sidecar.wire.errors import ApiError


def test_without_a_proxy_there_is_only_an_id() -> None:
    assert read_ticket({}, "req_own") == Ticket("req_own")


def test_a_proxy_s_words_are_taken() -> None:
    headers = {
        "x-tollhouse-request-id": "req_1",
        "x-tollhouse-tenant": "acct_1",
        "x-tollhouse-weight": "2.5",
        "x-tollhouse-priority": "-3",
        "x-tollhouse-deadline-ms": "900",
        "x-tollhouse-max-total-tokens": "100",
        "x-tollhouse-max-output-tokens": "50",
        "x-tollhouse-cache-scope": "a:" + "x" * 126,
    }
    store = {"x-tollhouse-stored": "1", "x-tollhouse-previous-response": "resp_1"}
    scope = headers["x-tollhouse-cache-scope"]
    ticket = Ticket("req_1", True, "acct_1", 2.5, -3, 900, 100, 50, scope)
    assert read_ticket(headers, "req_own") == ticket
    assert read_ticket(headers | store, "req_own") == replace(ticket, stored=True, previous_response_id="resp_1")


def test_the_trace_names_its_log_lines_and_one_that_cannot_be_read_counts_as_none() -> None:
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    ticket = read_ticket({"traceparent": f"00-{trace_id}-{span_id}-00"}, "req_own")
    assert ticket.named() == {"request_id": "req_own", "trace_id": trace_id, "span_id": span_id}
    for unreadable in ("", f"00-{trace_id}-{span_id}", f"00-{trace_id}-{'0' * 16}-01", f"00-{trace_id.upper()}-x-01"):
        assert read_ticket({"traceparent": unreadable}, "req_own").named() == {"request_id": "req_own"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-tollhouse-request-id", ""),
        ("x-tollhouse-request-id", "a" * 41),
        ("x-tollhouse-request-id", "ü"),
        ("x-tollhouse-tenant", "a b"),
        ("x-tollhouse-cache-scope", "a b"),
        ("x-tollhouse-cache-scope", "x" * 129),
        ("x-tollhouse-stored", ""),
        ("x-tollhouse-stored", "true"),
        ("x-tollhouse-previous-response", "a b"),
        ("x-tollhouse-weight", "0"),
        ("x-tollhouse-weight", "nan"),
        ("x-tollhouse-priority", "1.5"),
        ("x-tollhouse-deadline-ms", "0"),
        ("x-tollhouse-max-total-tokens", "-1"),
        ("x-tollhouse-max-output-tokens", "\u0661"),
    ],
)
def test_a_word_that_cannot_be_read_is_refused_by_its_header(name: str, value: str) -> None:
    with pytest.raises(ApiError, match=name) as caught:
        read_ticket({name: value}, "req_own")
    assert caught.value.status == 400


def test_our_own_ids_fit_the_usage_slots_and_differ() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_request_id(one) and len(one) == 28 for one in ids)
