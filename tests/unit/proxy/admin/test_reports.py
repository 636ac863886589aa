"""How near keys are to a quota: their own or their account's, of tokens or of requests."""

import datetime as dt
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from proxy.admin import reports
from proxy.admin.desk import Desk
from proxy.admin.reports import Share
from proxy.policy.schema import NO_OVERRIDES, Overrides, Policy, Tier
from proxy.store.spread import Spread
from tests.fakes.proxy import FakeClock

# 5 requests and 500 tokens of its own, 20 and 1,500 of its account.
KEY = Spread("key1", 1, "free", NO_OVERRIDES, NO_OVERRIDES, 5, 500, 20, 1500)


@dataclass
class FakeLedger:
    rows: list[Spread]

    async def spread(self, period: str, now: dt.datetime) -> list[Spread]:
        assert (period, now) == ("2026-11", FakeClock().now())
        return self.rows


@dataclass
class FakeDesk:
    ledger: FakeLedger
    policy: Policy
    clock: FakeClock = field(default_factory=FakeClock)


async def shares(*rows: Spread, **limits: Any) -> list[Share]:
    names = ("requests_per_minute", "tokens_per_minute", "concurrency", "monthly_requests", "monthly_tokens")
    none: dict[str, Any] = dict.fromkeys((*names, "max_output_tokens", "default_output_tokens"))
    tier = Tier(name="free", models=frozenset({"*"}), priority=0, **none | limits)
    desk = FakeDesk(FakeLedger(list(rows)), Policy(tiers={"free": tier}, revision="r"))
    return await reports.quota_shares(cast("Desk", desk))


@pytest.mark.parametrize(
    ("limits", "used"),
    [
        ({"monthly_tokens": 1000}, 0.5),
        ({"monthly_requests": 20}, 0.25),
        ({"account_monthly_tokens": 2000}, 0.75),
        ({"account_monthly_requests": 25}, 0.8),
        ({"monthly_tokens": 1000, "account_monthly_tokens": 1500}, 1.0),
        ({"monthly_tokens": 1000, "monthly_requests": 2}, 2.5),
        ({"monthly_tokens": 1000, "monthly_requests": 2, "shadow": frozenset({"monthly_requests"})}, 0.5),
    ],
)
async def test_a_key_is_as_near_as_to_the_nearest_quota_that_refuses(limits: dict[str, Any], used: float) -> None:
    assert await shares(KEY, **limits) == [Share(used, 1, "key1", "free")]


async def test_limits_of_its_own_and_of_its_account_stand_in_the_place_of_the_tiers() -> None:
    own = replace(KEY, limits=Overrides(monthly_tokens=5000))
    of_account = replace(KEY, account_limits=Overrides(monthly_tokens=3000))
    tier = {"monthly_tokens": 600, "account_monthly_tokens": 2000}
    assert [share.used for share in await shares(own, of_account, **tier)] == [0.75, 500 / 600]
    assert [share.used for share in await shares(of_account, account_monthly_tokens=2000)] == [0.5]


async def test_who_has_no_quota_or_no_tier_is_near_none() -> None:
    assert await shares(KEY) == []
    assert await shares(replace(KEY, tier="gone"), monthly_tokens=1000) == []
