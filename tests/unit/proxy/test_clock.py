"""A wall clock that is set: it is noticed, and months are what they were."""

import asyncio
import datetime as dt
import io
import json

import pytest
from prometheus_client import CollectorRegistry

from proxy import metrics
from proxy.clock import StepWatch, month_of, seconds_to_next_month
from proxy.metrics import Metrics, watch_clock
from sidecar.jsonlog import JsonLog
from tests.fakes.proxy import FakeClock


class SetClock(FakeClock):
    """A clock whose wall can be set: `set_s` ahead of where it began."""

    def __init__(self) -> None:
        super().__init__()
        self.set_s = 0.0

    def now(self) -> dt.datetime:
        return super().now() + dt.timedelta(seconds=self.set_s)


@pytest.mark.parametrize("step_s", [-3600.0, 40 * 86400.0, 60.5, -60.5])
def test_f9_a_clock_that_is_set_is_noticed_once(step_s: float) -> None:
    clock = SetClock()
    watch = StepWatch(clock)
    assert watch.step_s() is None
    clock.seconds += 1
    clock.set_s += step_s
    assert watch.step_s() == pytest.approx(step_s)
    clock.seconds += 1
    assert watch.step_s() is None


def test_f9_time_that_passes_and_time_servers_are_no_steps() -> None:
    clock = SetClock()
    watch = StepWatch(clock)
    for _ in range(100):
        clock.seconds += 3600
        clock.set_s += 60
        assert watch.step_s() is None


async def test_f9_a_step_is_counted_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CLOCK_EVERY_S", 0.0)
    clock, out = SetClock(), io.StringIO()
    steps = Metrics(clock, CollectorRegistry(), "1.0").clock_steps
    watching = asyncio.create_task(watch_clock(clock, steps, JsonLog(out)))
    await asyncio.sleep(0)
    clock.set_s = -3600
    for _ in range(3):
        await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    (line,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (line["event"], line["seconds"]) == ("clock_stepped", -3600)
    assert steps._value.get() == 1


@pytest.mark.parametrize("day", [1, 28, 30])
def test_f9_no_month_is_over_already(day: int) -> None:
    moment = dt.datetime(2026, 11, day, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    for ahead in (dt.timedelta(0), dt.timedelta(hours=-1), dt.timedelta(days=40)):
        assert seconds_to_next_month(moment + ahead) > 0
        until_then = dt.timedelta(seconds=seconds_to_next_month(moment + ahead))
        assert month_of(moment + ahead + until_then) > month_of(moment + ahead)
