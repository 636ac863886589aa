"""How fast sequences end, to tell a refused client when to come back. Pure; time is handed in."""

from collections import deque
from typing import Final

_SAMPLES: Final = 64
_WINDOW_S: Final = 60.0
# The SDKs take a retry-after from 1 to 60 seconds seriously (WIRE, 1.4).
_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 60.0


class Throughput:
    """The ends of the last minute. Mutable: `_ends`, how many sequences ended when."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def ended(self, now_s: float, count: int) -> None:
        if count:
            self._ends.append((now_s, count))

    def wait_s(self, now_s: float, places: int) -> float:
        """How long until `places` more sequences will have ended, at the pace of the last minute."""
        recent = [(at, count) for at, count in self._ends if now_s - at <= _WINDOW_S]
        if not recent:
            return _SHORTEST_S
        # Up to now, not to the last end: an engine that has ended nothing for a while is that slow.
        span_s = max(now_s - recent[0][0], 0.001)
        pace = sum(count for _, count in recent) / span_s
        return min(_LONGEST_S, max(_SHORTEST_S, places / pace))
