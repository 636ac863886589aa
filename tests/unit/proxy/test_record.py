"""The end of a request, in numbers and in one line."""

import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from proxy.asked import UpstreamRefusedError
from proxy.exchange import Ending, Outcome
from proxy.metrics import Metrics
from proxy.record import TOUCH_EVERY_S, CommitWatch, Ended, Record, Rooms, ValkeyWatch
from proxy.verdict import RefusedError, Remark
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import SERVICE_UNAVAILABLE as UNAVAILABLE
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Usage
from tests.fakes.proxy import ARRIVAL, PRINCIPAL, FakeClock, call

RUNBOOKS = Path(__file__).parents[3] / "docs/operations.md"
CHAT = "/v1/chat/completions"
COMPLETE = Ended(
    arrival=ARRIVAL,
    endpoint=CHAT,
    outcome=Outcome(200, Ending.COMPLETE, Usage(7, 3, 2, reasoning_tokens=1), "stop"),
    principal=PRINCIPAL,
    call=call(),
    known_model="m",
    admitted=True,
    upstream="local",
    first_byte_s=1000.5,
    rooms=Rooms(0.001, 0.002, 0.003, 0.004),
)


class FakeKeys:
    def __init__(self) -> None:
        self.touched: list[str] = []

    def touch(self, key_id: str, _moment: Any) -> None:
        self.touched.append(key_id)


class Desk:
    """A record with its surroundings."""

    def __init__(self) -> None:
        self.registry, self.clock, self.log, self.keys = CollectorRegistry(), FakeClock(), io.StringIO(), FakeKeys()
        self.metrics = Metrics(self.clock, self.registry, "1.0")
        self.record = Record(self.metrics, self.keys, JsonLog(self.log), self.clock)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tollhouse_proxy_{name}", labels)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def test_a_complete_request_is_one_line_with_its_figures() -> None:
    desk = Desk()
    desk.clock.seconds = 2.0
    desk.record.finish(COMPLETE)
    (line,) = desk.lines
    assert "refused" not in line
    expected = {
        "event": "request", "level": "info", "request_id": "req_1", "trace_id": "a" * 32, "span_id": "b" * 16,
        "address": "192.0.2.1", "endpoint": CHAT, "account_id": "acct_1", "key_id": "key1", "tier": "pro", "model": "m",
        "stream": True, "choices": 1, "upstream": "local", "status": 200, "ending": "complete", "finish_reason": "stop",
        "prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": 3, "duration_ms": 2000, "ttft_ms": 500,
        "identify_ms": 1, "admit_ms": 2, "forward_ms": 3, "settle_ms": 4,
    }  # fmt: skip
    del line["time"]
    assert line == expected


def test_a_complete_request_is_counted_once_everywhere() -> None:
    desk = Desk()
    desk.record.finish(COMPLETE)
    assert desk.value("requests_total", endpoint=CHAT, model="m", tier="pro", code="200") == 1
    assert desk.value("request_duration_seconds_count", endpoint=CHAT, stream="true") == 1
    assert desk.value("time_to_first_token_seconds_sum", model="m") == 0.5
    assert desk.value("tokens_total", model="m", tier="pro", type="input") == 7
    assert desk.value("tokens_total", model="m", tier="pro", type="cached_input") == 2
    assert desk.value("tokens_total", model="m", tier="pro", type="output") == 3
    assert desk.value("tokens_total", model="m", tier="pro", type="reasoning") == 1
    assert desk.value("policy_decisions_total", policy="admission", decision="allow") == 1
    for phase in ("identify", "admit", "forward", "settle", "record"):
        assert desk.value("overhead_seconds_count", phase=phase) == 1
    assert desk.value("active_clients", window="5m") == 1


async def test_a_request_that_is_traced_stands_for_its_buckets() -> None:
    desk = Desk()
    traced = msgspec.structs.replace(ARRIVAL, trace=msgspec.structs.replace(ARRIVAL.trace, sampled=True))
    desk.record.finish(COMPLETE)
    assert b"trace_id" not in await desk.metrics.page(openmetrics=True)
    desk.record.finish(replace(COMPLETE, arrival=traced))
    shown = [line for line in (await desk.metrics.page(openmetrics=True)).decode().splitlines() if "trace_id" in line]
    assert [line.partition("{")[0].removeprefix("tollhouse_proxy_") for line in shown] == [
        "request_duration_seconds_bucket",
        "time_to_first_token_seconds_bucket",
    ]
    assert all(f'# {{trace_id="{"a" * 32}"}}' in line for line in shown)
    assert b"trace_id" not in await desk.metrics.page()


def test_a6_a_stranger_s_request_has_no_tier_and_no_model() -> None:
    desk = Desk()
    error = ApiError(401, "no", code="invalid_api_key")
    desk.record.finish(Ended(ARRIVAL, "_other", Outcome(401, Ending.REFUSED, None, "", error.code), error=error))
    assert desk.value("requests_total", endpoint="_other", model="_other", tier="none", code="401") == 1
    assert desk.value("errors_total", type="invalid_request_error", origin="client") == 1
    assert desk.value("active_clients", window="5m") == 0
    (line,) = desk.lines
    assert not {"key_id", "tier", "model", "prompt_tokens", "ttft_ms"} & set(line)


@pytest.mark.parametrize(
    ("error", "ending", "kind", "origin"),
    [
        (RefusedError("tokens_per_minute", 429, "", type="tokens"), Ending.REFUSED, "tokens", "policy"),
        (ApiError(400, ""), Ending.REFUSED, "invalid_request_error", "client"),
        (UpstreamRefusedError(400, ""), Ending.UPSTREAM_REFUSED, "invalid_request_error", "client"),
        (UpstreamRefusedError(503, "", type="made_up"), Ending.UPSTREAM_REFUSED, "_other", "upstream"),
        (ApiError(503, "", type=UNAVAILABLE), Ending.UPSTREAM_FAILED, UNAVAILABLE, "upstream"),
        (ApiError(500, "", type="server_error"), Ending.INTERNAL, "server_error", "internal"),
        (ApiError(503, "", type=UNAVAILABLE), Ending.SHUTTING_DOWN, UNAVAILABLE, "internal"),
        (ApiError(503, "", type=UNAVAILABLE), Ending.REFUSED, UNAVAILABLE, "internal"),
        (ApiError(401, ""), Ending.REVOKED, "invalid_request_error", "policy"),
    ],
)  # fmt: skip
def test_an_error_is_counted_by_type_and_who_is_to_blame(
    error: ApiError, ending: Ending, kind: str, origin: str
) -> None:
    desk = Desk()
    desk.record.finish(replace(COMPLETE, outcome=Outcome(error.status, ending, None, ""), error=error, admitted=False))
    assert desk.value("errors_total", type=kind, origin=origin) == 1


# That of a request refused for lack of memory the runbook finds by its status.
@pytest.mark.parametrize("ending", sorted(set(Ending) - {Ending.REFUSED}))
def test_the_runbook_of_the_error_budget_finds_the_lines_of_what_it_counts(ending: Ending) -> None:
    (pattern,) = re.findall("^grep -E '(.+)' run/proxy.log", RUNBOOKS.read_text(), re.MULTILINE)
    desk = Desk()
    error = ApiError(503, "", type=UNAVAILABLE)
    desk.record.finish(replace(COMPLETE, outcome=Outcome(503, ending, None, ""), error=error))
    counted = sum(
        desk.value("errors_total", type=UNAVAILABLE, origin=origin) or 0 for origin in ("upstream", "internal")
    )
    assert bool(re.search(pattern, desk.log.getvalue())) == bool(counted)


def test_a_stream_that_broke_off_is_the_sidecar_s_fault() -> None:
    desk = Desk()
    desk.record.finish(replace(COMPLETE, outcome=Outcome(200, Ending.UPSTREAM_FAILED, Usage(7, 1), "", "timeout")))
    assert desk.value("errors_total", type="server_error", origin="upstream") == 1


@pytest.mark.parametrize("rule", ["requests_per_minute", "monthly_tokens", "models", "max_output_tokens"])
def test_a_refusal_is_counted_by_the_rule_it_names(rule: str) -> None:
    desk = Desk()
    error = RefusedError(rule, 429, "", type="requests", code="x")
    desk.record.finish(
        replace(COMPLETE, outcome=Outcome(429, Ending.REFUSED, None, "", "x"), error=error, admitted=False)
    )
    assert desk.value("policy_decisions_total", policy=rule, decision="refuse") == 1
    assert desk.value("policy_decisions_total", policy="admission", decision="allow") is None
    assert [line["rule"] for line in desk.lines] == [rule]


def test_what_a_rule_in_shadow_said_is_counted_and_in_the_line() -> None:
    desk = Desk()
    said = (Remark("requests_per_minute", "shadow"), Remark("monthly_tokens", "shadow"))
    desk.record.finish(replace(COMPLETE, remarks=said))
    for rule in ("requests_per_minute", "monthly_tokens"):
        assert desk.value("policy_decisions_total", policy=rule, decision="shadow") == 1
    assert desk.value("policy_decisions_total", policy="admission", decision="allow") == 1
    assert desk.lines[0]["shadow"] == "requests_per_minute,monthly_tokens"


def test_a_refusal_by_no_rule_is_none_of_the_policys() -> None:
    desk = Desk()
    error = ApiError(400, "", code="rate_limit_exceeded", type="requests")
    desk.record.finish(replace(COMPLETE, outcome=Outcome(400, Ending.REFUSED, None, ""), error=error, admitted=False))
    assert desk.value("errors_total", type="requests", origin="client") == 1
    assert "rule" not in desk.lines[0]


@pytest.mark.parametrize(("first_byte_s", "phase"), [(None, "before_first_token"), (1000.5, "streaming")])
def test_who_leaves_is_counted_by_when(first_byte_s: float | None, phase: str) -> None:
    desk = Desk()
    outcome = Outcome(499, Ending.CLIENT_GONE, None, "")
    desk.record.finish(replace(COMPLETE, outcome=outcome, first_byte_s=first_byte_s))
    assert desk.value("client_disconnects_total", phase=phase) == 1
    assert desk.value("errors_total", type="server_error", origin="internal") == 0


def test_the_use_of_a_key_is_written_down_once_a_minute() -> None:
    desk = Desk()
    for _ in range(3):
        desk.record.finish(COMPLETE)
    assert desk.keys.touched == ["key1"]
    desk.clock.seconds = TOUCH_EVERY_S
    desk.record.finish(COMPLETE)
    assert desk.keys.touched == ["key1", "key1"]


def test_an_open_stream_is_a_gauge() -> None:
    desk = Desk()
    with desk.record.streaming():
        assert desk.value("open_streams") == 1
    assert desk.value("open_streams") == 0


def test_commits_are_measured_and_failures_logged() -> None:
    desk = Desk()
    watch = CommitWatch(desk.metrics, JsonLog(desk.log))
    watch.committed(0.002, 5)
    watch.failed(OSError(28, "No space"), 3)
    assert desk.value("ledger_batch_size_sum") == 5
    assert desk.value("ledger_commit_seconds_count") == 1
    # A commit, however many operations were in it.
    assert desk.value("ledger_failures_total") == 1
    assert [(line["event"], line["errno"]) for line in desk.lines] == [("ledger_commit_failed", "ENOSPC")]


def test_valkey_s_coming_and_going_is_logged_and_the_number_of_proxies_only_counted() -> None:
    desk = Desk()
    watch = ValkeyWatch(desk.metrics, JsonLog(desk.log))
    for up, proxies in [(True, 1), (True, 3), (False, 3), (True, 3)]:
        watch.told(up, proxies)
        assert (desk.value("valkey_up"), desk.value("proxies")) == (up, proxies)
    assert [line["event"] for line in desk.lines] == ["valkey_reached", "valkey_lost", "valkey_reached"]
