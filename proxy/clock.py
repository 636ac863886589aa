"""Time, injected: monotonic seconds for rates and durations, UTC for months and rows."""

import datetime as dt
import time
from typing import Final, Protocol

# A wall clock that is set by more than this is told of; less is what time servers do every day.
STEP_S: Final = 60.0


class Clock(Protocol):
    """What the proxy asks of time."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""

    def now(self) -> dt.datetime:
        """The wall clock, in UTC, timezone-aware."""


class SystemClock:
    """The machine's clocks."""

    # Itself, without a call of ours around it: a request asks some thirty times.
    monotonic = staticmethod(time.monotonic)

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)


class StepWatch:
    """Notices that the wall clock was set, by the monotonic one beside it.

    Mutable: `_offset_s`, how far the wall clock was ahead when last looked at.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = self._offset()

    def step_s(self) -> float | None:
        """By how many seconds it was set since the last look, less than 0 for back; None for no more than `STEP_S`."""
        offset_s = self._offset()
        step_s, self._offset_s = offset_s - self._offset_s, offset_s
        return step_s if abs(step_s) > STEP_S else None

    def _offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()


def month_of(moment: dt.datetime) -> str:
    """The quota period of a moment: its UTC calendar month as `2026-11`."""
    utc = moment if moment.tzinfo is dt.UTC else moment.astimezone(dt.UTC)
    return f"{utc.year:04}-{utc.month:02}"


def seconds_to_next_month(moment: dt.datetime) -> float:
    """Seconds until the next UTC calendar month begins."""
    utc = moment.astimezone(dt.UTC)
    year, month = (utc.year + 1, 1) if utc.month == 12 else (utc.year, utc.month + 1)
    return (dt.datetime(year, month, 1, tzinfo=dt.UTC) - utc).total_seconds()
