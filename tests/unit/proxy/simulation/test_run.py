"""Single recorded requests under a policy: what is let in, refused, waited for and assumed."""

import datetime as dt
from typing import Any

from proxy.policy.schema import Overrides, Policy, Tier
from proxy.simulation.report import Report, Total
from proxy.simulation.request import Caller
from proxy.simulation.run import simulate
from proxy.store.recordings import Recorded

NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
OPEN: dict[str, Any] = dict.fromkeys(
    (
        "requests_per_minute",
        "tokens_per_minute",
        "concurrency",
        "monthly_requests",
        "monthly_tokens",
        "max_output_tokens",
        "default_output_tokens",
    )
)


def row(number: int, at_s: float, **changes: Any) -> Recorded:
    created = NOON + dt.timedelta(seconds=at_s)
    fields: dict[str, Any] = {
        "request_id": f"req_{number}",
        "state": "settled",
        "key_id": "k",
        "account_id": "a",
        "tier": "t",
        "endpoint": "/v1/chat/completions",
        "model": "m",
        "stream": False,
        "choices": 1,
        "created": created,
        "ended": created + dt.timedelta(seconds=1),
        "est_tokens": 60,
        "prompt_tokens": 10,
        "completion_tokens": 40,
        "asked_output_tokens": 50,
        "bound_prompt_tokens": 12,
        "max_context": 1000,
        "prompts": 1,
    }
    return Recorded(**{**fields, **changes})


def tried(rows: list[Recorded], *callers: Caller, **limits: Any) -> Report:
    fields = {"name": "t", "models": frozenset({"*"}), "priority": 0, **OPEN, **limits}
    policy = Policy(tiers={"t": Tier(**fields)}, revision="r")
    return simulate(policy, rows, callers, since=NOON, until=NOON + dt.timedelta(days=30))


def refused(report: Report) -> dict[str, str | None]:
    return {one.request_id.removeprefix("req_"): one.rule for one in report.refusals}


def test_without_limits_all_are_let_in() -> None:
    report = tried([row(1, 0), row(2, 0.5), row(3, 86_400)])
    assert (report.requests, report.let_in, report.refused, report.refusals) == (3, 3, 0, [])
    assert report.by_key == [Total("k", 3, 0, 0)]


def test_a_minute_is_a_minute_of_the_recording() -> None:
    report = tried([row(1, 0), row(2, 59.9), row(3, 60.0)], requests_per_minute=1)
    assert refused(report) == {"2": "requests_per_minute"}
    assert report.by_rule == [Total("requests_per_minute", 1, 1, 0)]
    assert report.refusals[0].at == NOON + dt.timedelta(seconds=59.9)


def test_a_request_runs_as_long_as_it_ran() -> None:
    long = row(1, 0, ended=NOON + dt.timedelta(seconds=5))
    assert refused(tried([long, row(2, 4.9), row(3, 5.1)], concurrency=1)) == {"2": "concurrency"}


def test_who_may_wait_is_let_in_later_and_in_turn() -> None:
    rows = [row(number, number / 10) for number in range(4)]
    report = tried(rows, concurrency=1, max_waiting=2, max_wait_s=1.5)
    # The second waits for the first; the third would wait for two seconds; for the fourth there is no place.
    assert refused(report) == {"2": "concurrency", "3": "concurrency"}
    assert refused(tried(rows, concurrency=1, max_waiting=2, max_wait_s=2.5)) == {"3": "concurrency"}


def test_what_was_used_of_the_month_before_counts_and_the_next_month_begins_anew() -> None:
    before = Caller("k", "a", used_tokens=900, used_requests=9)
    rows = [row(1, 0), row(2, 10), row(3, 6 * 86_400)]
    assert refused(tried(rows, before, monthly_requests=10)) == {"2": "monthly_requests"}
    assert refused(tried(rows, before, monthly_tokens=980)) == {"2": "monthly_tokens"}
    assert refused(tried(rows, before, Caller("l", "a", used_requests=5), account_monthly_requests=15)) == {
        "2": "account_monthly_requests"
    }


def test_a_key_keeps_what_it_has_of_its_own() -> None:
    rows = [row(1, 0), row(2, 1), row(3, 2, model="n")]
    own = Caller("k", "a", ["m"], Overrides(requests_per_minute=1))
    assert refused(tried(rows, own)) == {"2": "requests_per_minute", "3": "models"}


def test_more_output_than_the_policy_allows_is_refused_and_what_is_left_open_fits() -> None:
    rows = [row(1, 0), row(2, 1, asked_output_tokens=None)]
    assert refused(tried(rows, max_output_tokens=20)) == {"1": "max_output_tokens"}
    # Cut to 20 it leaves room in the month for two more.
    more = [row(number, number, asked_output_tokens=None) for number in range(4)]
    assert refused(tried(more, default_output_tokens=20, monthly_tokens=95)) == {"3": "monthly_tokens"}


def test_a_tier_that_is_gone_refuses() -> None:
    assert refused(tried([row(1, 0, tier="gone")])) == {"1": "tiers"}


def test_rules_in_shadow_refuse_nobody_and_are_told() -> None:
    report = tried([row(1, 0), row(2, 1)], requests_per_minute=1, shadow=frozenset({"requests_per_minute"}))
    assert (report.refused, [one.shadow for one in report.refusals]) == (0, [["requests_per_minute"]])
    assert report.by_rule == [Total("requests_per_minute", 1, 0, 1)]


def test_what_nothing_ran_of_takes_nothing_for_good() -> None:
    void = row(1, 0, state="void", prompt_tokens=0, completion_tokens=0)
    assert refused(tried([void, row(2, 2)], monthly_requests=1)) == {}


def test_what_had_been_refused_runs_like_the_others_and_is_told() -> None:
    rows = [row(1, 0), row(2, 100, state="refused", ended=NOON, prompt_tokens=0, completion_tokens=0), row(3, 100.5)]
    report = tried(rows, concurrency=1)
    assert refused(report) == {"3": "concurrency"}
    assert len(report.remarks) == 1
    assert report.remarks[0].startswith("1 had been refused")


def test_what_another_room_had_refused_is_refused_again() -> None:
    rows = [
        row(1, 0, state="refused", rule="equal_prompts_per_minute"),
        row(2, 0.5, state="refused", rule="concurrency"),
    ]
    report = tried(rows, concurrency=1)
    assert refused(report) == {"1": "equal_prompts_per_minute"}
    assert [remark[:30] for remark in report.remarks] == [
        "1 had been refused by rules th",
        "1 had been refused: what they ",
    ]


def test_what_runs_still_and_what_is_old_is_told() -> None:
    rows = [
        row(1, 0, state="reserved", ended=None, prompt_tokens=0, completion_tokens=0),
        row(2, 1, asked_output_tokens=None, bound_prompt_tokens=None, max_context=None, prompts=None),
        row(3, 2, endpoint="/v1/other"),
    ]
    report = tried(rows)
    assert (report.requests, report.refused) == (2, 0)
    assert [remark[:24] for remark in report.remarks] == [
        "1 were recorded by an ea",
        "1 were still running: wh",
        "1 are of endpoints that ",
    ]
