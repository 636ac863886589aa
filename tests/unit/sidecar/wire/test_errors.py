import json

import pytest

from sidecar.wire.errors import ApiError, bad_request, internal_error, parse_error, unavailable


def test_the_body_has_openai_s_four_keys() -> None:
    error = bad_request("Unsupported value.", param="messages[0].role", code="invalid_value")
    assert json.loads(error.body()) == {
        "error": {
            "message": "Unsupported value.",
            "type": "invalid_request_error",
            "param": "messages[0].role",
            "code": "invalid_value",
        }
    }
    assert error.headers() == {}


def test_an_event_is_one_data_frame() -> None:
    event = internal_error().event()
    assert event.startswith(b'data: {"error":{')
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2


@pytest.mark.parametrize(
    ("seconds", "whole", "millis"), [(0.174, "1", "174"), (1.0, "1", "1000"), (61.2, "62", "61200")]
)
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, whole: str, millis: str) -> None:
    headers = unavailable("Busy.", code="server_is_overloaded", retry_after_s=seconds).headers()
    assert headers == {"retry-after": whole, "retry-after-ms": millis, "x-should-retry": "true"}


def test_a_quota_refusal_tells_the_sdk_not_to_retry() -> None:
    error = ApiError(429, "Used up.", type="insufficient_quota", code="insufficient_quota", should_retry=False)
    assert error.headers() == {"x-should-retry": "false"}


def test_an_error_survives_the_way_through_the_proxy() -> None:
    error = bad_request("Bad.", param="n", code="integer_above_max_value")
    again = parse_error(400, error.body())
    assert (again.status, again.body()) == (400, error.body())


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"detail":"x"}', b'{"error":"x"}', b"\xff"])
def test_a_foreign_error_body_is_not_passed_on(body: bytes) -> None:
    error = parse_error(502, body)
    assert (error.status, error.type, error.message) == (502, "server_error", "The upstream answered 502.")
