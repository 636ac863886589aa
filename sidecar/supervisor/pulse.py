"""Whether the engine still gets on. Pure; times are monotonic seconds, handed in.

An engine that has work must step; one that has none need not. Rules:
- the clock of an engine that gets work runs from its last step or from when the work came, whichever is later;
- time in which we did not run ourselves does not count: whatever stopped us may have stopped the engine too.
"""

import enum

from sidecar.settings import Timeouts


class Verdict(enum.Enum):
    """What the watch finds."""

    WELL = ""
    STALLED = "stalled"
    LOADS_TOO_LONG = "loads too long"


class Pulse:
    """One process's signs of life. Mutable: the moments `started_s`, `ready_s` (None until then), `_alive_s`."""

    def __init__(self, timeouts: Timeouts, now_s: float) -> None:
        self._timeouts = timeouts
        self.started_s = now_s
        self.ready_s: float | None = None
        self._alive_s = now_s

    def ready(self, now_s: float) -> None:
        self.ready_s = now_s
        self.alive(now_s)

    def alive(self, now_s: float) -> None:
        """A step happened, or the first work came, or nothing may be concluded from what was before."""
        self._alive_s = max(self._alive_s, now_s)

    def age_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._alive_s)

    def verdict(self, now_s: float, *, has_work: bool) -> Verdict:
        if self.ready_s is None:
            late = now_s - self.started_s > self._timeouts.load_s
            return Verdict.LOADS_TOO_LONG if late else Verdict.WELL
        if has_work and self.age_s(now_s) > self._timeouts.stall_s:
            return Verdict.STALLED
        return Verdict.WELL
