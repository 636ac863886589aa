"""Time, injected: monotonic seconds for rates and durations, UTC for months and rows."""

import datetime as dt
import time
from typing import Protocol


class Clock(Protocol):
    """What the proxy asks of time."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""

    def now(self) -> dt.datetime:
        """The wall clock, in UTC, timezone-aware."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)


def month_of(moment: dt.datetime) -> str:
    """The quota period of a moment: its UTC calendar month as `2026-11`."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m")


def seconds_to_next_month(moment: dt.datetime) -> float:
    """Seconds until the next UTC calendar month begins."""
    utc = moment.astimezone(dt.UTC)
    year, month = (utc.year + 1, 1) if utc.month == 12 else (utc.year, utc.month + 1)
    return (dt.datetime(year, month, 1, tzinfo=dt.UTC) - utc).total_seconds()
