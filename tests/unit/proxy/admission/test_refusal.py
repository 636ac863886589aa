"""Durations as Go writes them, and the words and fields of each refusal."""

import datetime as dt

import pytest

from proxy.admission import refusal
from proxy.admission.concurrency import ConcurrencyLook
from proxy.admission.quota import QuotaLook
from proxy.admission.rate import Rate, RateLook
from proxy.admission.rules import Limit

LATE_NOVEMBER = dt.datetime(2026, 11, 30, 23, 58, 30, tzinfo=dt.UTC)
PER_MINUTE = Limit("tokens_per_minute", Rate(100), "in the tier 'free'")
AT_ONCE = Limit("concurrency", Rate(2), "for this API key")
A_MONTH = Limit("monthly_tokens", Rate(100), "in the tier 'free'")
LIMITS = {"x-ratelimit-limit-requests": "10"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (0.0101, "11ms"),
        (1e-9, "0s"),
        (1e-6, "1ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (10, "10s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.25, "1m30.25s"),
        (3600, "1h0m0s"),
        (86_461, "24h1m1s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert refusal.duration(seconds) == text


def test_a_rate_says_limit_used_requested_and_when() -> None:
    look = RateLook(limit=30000, requested=11159, remaining=11072, reset_s=37.9, retry_after_s=0.174)
    error = refusal.rate(PER_MINUTE, look, LIMITS)
    assert (error.status, error.type, error.code) == (429, "tokens", "rate_limit_exceeded")
    assert "Limit 30000, Used 18928, Requested 11159. Please try again in 174ms." in error.message
    assert error.headers() == {**LIMITS, "retry-after": "1", "retry-after-ms": "174"}


def test_more_than_a_whole_minute_is_not_to_be_tried_again() -> None:
    look = RateLook(limit=100, requested=101, remaining=100, reset_s=0, retry_after_s=None)
    error = refusal.rate(PER_MINUTE, look, LIMITS)
    assert (error.status, error.type, error.code) == (429, "tokens", "rate_limit_exceeded")
    assert "Limit 100, Requested 101" in error.message
    assert error.headers() == {**LIMITS, "x-should-retry": "false"}


def test_concurrency_says_how_many_run() -> None:
    error = refusal.concurrency(AT_ONCE, ConcurrencyLook(limit=2, running=2), LIMITS)
    assert (error.status, error.type, error.code) == (429, "requests", "concurrency_limit_exceeded")
    assert "Too many requests at once for this API key: Limit 2, Used 2" in error.message
    assert error.rule == "concurrency"
    assert error.headers()["retry-after"] == "1"


def test_a_quota_is_renewed_with_the_month() -> None:
    error = refusal.quota(A_MONTH, QuotaLook(100, 81, 41), LIMITS, LATE_NOVEMBER)
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert "Limit 100, Used 81, Requested 41" in error.message
    assert "2026-12-01T00:00:00Z" in error.message
    assert error.headers() == {
        **LIMITS,
        "retry-after": "90",
        "retry-after-ms": "90000",
        "x-should-retry": "false",
    }


def test_more_than_a_whole_month_has_no_time_to_come_again() -> None:
    error = refusal.quota(A_MONTH, QuotaLook(100, 0, 101), LIMITS, LATE_NOVEMBER)
    assert error.code == "insufficient_quota"
    assert error.headers() == {**LIMITS, "x-should-retry": "false"}


def test_a_models_name_is_cut_in_the_answer() -> None:
    error = refusal.model_not_found("x" * 5000)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert len(error.message) < 300
