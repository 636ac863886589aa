"""The keys that are nearest to their quota, whatever their number."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from proxy.admin import reports
from proxy.admin.desk import Desk
from proxy.policy.schema import NO_OVERRIDES, Overrides, Policy, Tier
from proxy.store.ledger import UsageRow
from tests.fakes.proxy import FakeClock


@dataclass
class FakeLedger:
    rows: list[UsageRow]
    asked: list[str | None] = field(default_factory=list)

    async def usage(self, period: str, *, usable_at: dt.datetime, after: str | None, limit: int) -> list[UsageRow]:
        assert (period, usable_at) == ("2026-11", FakeClock().now())
        self.asked.append(after)
        return [row for row in self.rows if after is None or row.key_id > after][:limit]


@dataclass
class FakeDesk:
    ledger: FakeLedger
    policy: Policy
    clock: FakeClock = field(default_factory=FakeClock)


def row(key_id: str, tokens: int, tier_name: str = "free", limits: Overrides = NO_OVERRIDES) -> UsageRow:
    return UsageRow(key_id, key_id, "a", tier_name, 1, tokens, 0, 0, tokens, 1, 10, limits)


def tier(name: str, monthly_tokens: int | None) -> Tier:
    limits = ("requests_per_minute", "tokens_per_minute", "concurrency", "monthly_requests", "max_output_tokens")
    none: dict[str, Any] = dict.fromkeys((*limits, "default_output_tokens"))
    return Tier(name=name, models=frozenset({"*"}), priority=0, monthly_tokens=monthly_tokens, **none)


async def test_the_nearest_come_first_and_those_without_a_limit_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "KEYS_AT_ONCE", 2)
    rows = [
        row("key1", 40),
        row("key2", 90),
        row("key3", 590, limits=Overrides(monthly_tokens=1000)),
        row("key4", 5000, "boundless"),
        row("key5", 5000, "gone"),
    ]
    ledger = FakeLedger(rows)
    policy = Policy(tiers={"free": tier("free", 100), "boundless": tier("boundless", None)}, revision="r")
    found = await reports.nearest_quotas(cast("Desk", FakeDesk(ledger, policy)), 2)
    assert found == [("key2", "free", 1.0), ("key3", "free", 0.6)]
    # A part at a time, to the last.
    assert ledger.asked == [None, "key2", "key4"]
