"""Anthropic's error object: its types, and where a message names the field."""

import json

import pytest

from sidecar.wire.anthropic import error_body, error_event
from sidecar.wire.errors import ApiError, bad_request, internal_error, unavailable


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_each_status_has_anthropic_s_type(status: int, kind: str) -> None:
    assert json.loads(error_body(ApiError(status, "no", code="x"), "req_1")) == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req_1",
    }


def test_a_message_names_the_field_once() -> None:
    told = json.loads(error_body(bad_request("Invalid value: 'x'.", param="messages[0].role"), "req_1"))
    assert told["error"]["message"] == "messages[0].role: Invalid value: 'x'."
    told = json.loads(error_body(bad_request("Unknown parameter: 'n'.", param="n"), "req_1"))
    assert told["error"]["message"] == "Unknown parameter: 'n'."


@pytest.mark.parametrize("error", [internal_error(), unavailable("a\n\nb", code="x", retry_after_s=1)])
def test_an_event_is_one_frame(error: ApiError) -> None:
    event = error_event(error, "req_1")
    assert event == b"event: error\ndata: " + error_body(error, "req_1") + b"\n\n"
    assert event.count(b"\n") == 3
