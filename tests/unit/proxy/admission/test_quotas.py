"""Monthly quotas at the gate: of all keys of an account together, and soft ones that warn."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from proxy.exchange import Ending, Outcome
from proxy.policy.schema import Overrides
from proxy.store.ledger import Standing
from proxy.verdict import Remark
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Usage

Build = Callable[..., Any]
WARNING = "x-tollhouse-quota-warning"


async def settle(house: Any, grant: Any, prompt: int, completion: int) -> None:
    outcome = Outcome(200, Ending.COMPLETE, Usage(prompt, completion), "stop")
    await grant.settle(outcome, ended=house.clock.now(), duration_ms=1, ttft_ms=1)


# --- accounts ---


async def test_all_keys_of_an_account_share_its_requests(build: Build) -> None:
    house = build(account_monthly_requests=2)
    await house.admit(key_id="one")
    await house.admit(key_id="two")
    error = await house.refused(key_id="three")
    assert (error.status, error.code, error.rule) == (429, "insufficient_quota", "account_monthly_requests")
    assert "monthly requests for all keys of an account in the tier 't': Limit 2, Used 2" in error.message
    headers = error.headers()
    assert headers["x-should-retry"] == "false"
    until = dt.datetime(2026, 12, 1, tzinfo=dt.UTC) - house.clock.now()
    assert headers["retry-after"] == str(int(until.total_seconds()))


async def test_all_keys_of_an_account_share_its_tokens(build: Build) -> None:
    house = build(account_monthly_tokens=50)
    first = await house.admit(key_id="one")
    await house.admit(key_id="two")
    error = await house.refused(key_id="one")
    assert error.rule == "account_monthly_tokens"
    await settle(house, first, 10, 1)
    assert house.used_by_account() == (2, 31)
    error = await house.refused(key_id="two")
    assert "Limit 50, Used 31, Requested 20" in error.message
    await house.admit(key_id="two", max_output_tokens=9)


async def test_an_accounts_own_quota_holds_in_the_place_of_its_tiers(build: Build) -> None:
    house = build(account_monthly_requests=1)
    house.of_account = Overrides(monthly_requests=2)
    for key in ("one", "two"):
        await house.admit(key_id=key)
    error = await house.refused(key_id="one")
    assert "monthly requests for all keys of this account: Limit 2" in error.message


async def test_an_account_begins_where_the_ledger_has_all_of_its_keys(build: Build) -> None:
    house = build(account_monthly_tokens=300)
    house.ledger.standings["one", "2026-11"] = Standing(100, 50, 3, 1)
    house.ledger.standings["two", "2026-11"] = Standing(120, 0, 2, 0)
    house.ledger.standings["two", "2026-10"] = Standing(900, 0, 2, 0)
    await house.admit(key_id="new")
    assert house.used_by_account() == (7, 290)
    assert (await house.refused(key_id="two")).rule == "account_monthly_tokens"


async def test_an_account_of_another_keys_quota_is_not_lifted_by_the_keys_own(build: Build) -> None:
    house = build(account_monthly_requests=1, monthly_requests=1)
    own = Overrides(monthly_requests=50)
    await house.admit(own=own)
    assert (await house.refused(own=own)).rule == "account_monthly_requests"


async def test_fifty_at_once_from_ten_keys_against_an_account_of_ten_are_ten(build: Build) -> None:
    house = build(account_monthly_tokens=200)
    asked = [house.admit(key_id=f"key {number % 10}", body=b"x" * 500) for number in range(50)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(result, ApiError) for result in results) == 40
    assert house.used_by_account() == (10, 200)


async def test_output_that_nobody_asked_for_is_cut_to_what_an_account_could_ever_hold(build: Build) -> None:
    grant = await build(account_monthly_tokens=100).admit(max_output_tokens=None)
    assert grant.estimate.total == 100


async def test_a_voided_request_leaves_the_account_as_it_was(build: Build) -> None:
    house = build(account_monthly_requests=1)
    async with await house.admit():
        pass
    assert house.used_by_account() == (0, 0)
    await house.admit()


# --- soft ---


async def test_beyond_a_soft_quota_an_answer_carries_a_warning(build: Build) -> None:
    house = build(soft_monthly_tokens=30, monthly_tokens=100, soft_monthly_requests=3)
    first = await house.admit()
    assert WARNING not in first.headers()
    assert first.remarks == ()
    second = await house.admit()
    assert second.headers()[WARNING] == "monthly_tokens; used=40; soft=30; limit=100"
    assert second.remarks == (Remark("soft_monthly_tokens", "warn"),)
    for _ in range(2):
        last = await house.admit()
    assert last.headers()[WARNING] == ("monthly_requests; used=4; soft=3, monthly_tokens; used=80; soft=30; limit=100")


@pytest.mark.parametrize(("soft", "warned"), [(20, False), (19, True)])
async def test_a_soft_quota_that_is_just_reached_does_not_warn(build: Build, soft: int, warned: bool) -> None:
    grant = await build(soft_monthly_tokens=soft).admit()
    assert (WARNING in grant.headers()) is warned
