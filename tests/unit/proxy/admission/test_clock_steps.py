"""A wall clock that is set, an hour back or forty days ahead, gives no key more than its due, nor makes it wait."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from proxy.store.ledger import Standing

HOUR_BACK, FORTY_DAYS = -3600.0, 40 * 86400.0


def wall(house: Any, step_s: float) -> None:
    """Set the wall clock, and leave the monotonic one alone."""
    before = house.clock.now
    house.clock.now = lambda: before() + dt.timedelta(seconds=step_s)


@pytest.mark.parametrize("step_s", [HOUR_BACK, FORTY_DAYS])
async def test_f9_a_minute_is_as_long_as_it_was(build: Callable[..., Any], step_s: float) -> None:
    house = build(requests_per_minute=2)
    await house.admit()
    await house.admit()
    wall(house, step_s)
    error = await house.refused()
    assert error.headers()["retry-after-ms"] == "30000"
    house.clock.advance(30)
    await house.admit()


async def test_f9_a_month_s_quota_is_given_once_whatever_the_clock_does(build: Callable[..., Any]) -> None:
    house = build(monthly_tokens=100)
    house.ledger.standings["k", "2026-11"] = Standing(settled_tokens=60)
    await house.admit()
    for _ in range(3):
        wall(house, FORTY_DAYS)
        # What is another month by now has a quota of its own, which is given once as well.
        house.ledger.standings["k", "2027-01"] = Standing(settled_tokens=90)
        assert int((await house.refused()).headers()["retry-after"]) > 0
        wall(house, -FORTY_DAYS)
        assert house.used() == (1, 80)
        wall(house, HOUR_BACK)
        assert int((await house.refused(max_output_tokens=11)).headers()["retry-after"]) > 0


async def test_f9_a_request_lasts_as_long_as_it_did(build: Callable[..., Any]) -> None:
    house = build(monthly_tokens=100)
    async with await house.admit():
        wall(house, FORTY_DAYS)
    (end,) = house.ledger.told[1:]
    assert end.duration_ms == 0
    # Its month is the one that it was let in.
    assert house.used("k", "2026-11") == (0, 0)
