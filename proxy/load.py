"""How much sidecars have to do, in sequences, and how fast they get it done. What follows is not decided here."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from sidecar.wire.internal import State

PACE_OVER_S: Final = 30.0
MOST_ENDS: Final = 1024


class Load(msgspec.Struct, frozen=True):
    """What sidecars have: `sequences` in them, of which `at_once` run and `in_queue` more may wait.

    `per_s`: how many have ended a second of late.
    """

    sequences: int
    at_once: int
    in_queue: int
    per_s: float


def together(every: Sequence[Load]) -> Load:
    """The load of several sidecars as that of one."""
    if len(every) == 1:
        return every[0]
    return Load(
        sequences=sum(load.sequences for load in every),
        at_once=sum(load.at_once for load in every),
        in_queue=sum(load.in_queue for load in every),
        per_s=sum(load.per_s for load in every),
    )


class Workload:
    """The sequences of one sidecar, as far as they can be seen from here. `clock` gives monotonic seconds.

    Mutable: `ours`, those that run for us; `_state`, the last one it told; `_surplus`, by how many what it told was
    more, the last two times; `_ends`, when some of ours were done, and how many, the oldest first; `_ended`, how many
    these are together.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state: State | None = None
        self._surplus = (0, 0)
        self._ends: deque[tuple[float, int]] = deque()
        self._ended = 0
        self.ours = 0

    @contextlib.contextmanager
    def running(self, sequences: int) -> Iterator[None]:
        """While this lasts, so many more run for us. Those that end by an error say nothing of the pace."""
        self.ours += sequences
        try:
            yield
            self._ends.append((self._clock(), sequences))
            self._ended += sequences
        finally:
            self.ours -= sequences

    def told(self, state: State | None) -> None:
        """What the sidecar says of itself now; None while it cannot be reached."""
        self._state = state
        there = 0 if state is None else state.running + state.waiting
        self._surplus = (self._surplus[1], max(0, there - self.ours))

    @property
    def load(self) -> Load:
        """What it has to do; nothing, and room for nothing, while it is not ready.

        Ours are known to the moment; those of others as of what it told. One of ours that has just ended may be among
        them for a moment, so that a surplus counts once it was told twice.
        """
        state = self._state
        if state is None or not state.ready:
            return Load(0, 0, 0, 0.0)
        return Load(self.ours + min(self._surplus), state.max_sequences, state.max_queue, self._per_s())

    def _per_s(self) -> float:
        ends, now_s = self._ends, self._clock()
        while ends and (ends[0][0] < now_s - PACE_OVER_S or len(ends) > MOST_ENDS):
            self._ended -= ends.popleft()[1]
        # Over a whole second at least: two that end together are not endlessly fast.
        return self._ended / max(1.0, now_s - ends[0][0]) if ends else 0.0
