"""Whose turn it is: higher priority first, then tenants in turn by the tokens they were served.

Virtual token counters with counter lift (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
arXiv 2401.00588), within each priority: a tenant has a counter of the tokens it was served, divided by its weight, and
the lowest goes first. A tenant that comes to wait again is lifted to the lowest of those that wait, or to the one that
was last to start: idle time is no credit. A prompt's tokens are counted when they are scheduled, once, and not those
that came from the prefix cache.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from sidecar.engine.sequence import Sequence

# The paper's weights: a generated token costs about twice a prompt token.
PROMPT_COST: Final = 1.0
OUTPUT_COST: Final = 2.0
# So many counters of tenants that have left may be kept beside those of the present ones, before they are looked at.
_MOST_ABSENT: Final = 64

# Lower is earlier: (minus the priority, the tenant's share, arrival).
Turn = tuple[int, float, int]


class WaitingQueue:
    """Who waits, and what all tenants were served. Mutable: `_classes` (by priority), `_size`."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for same in self._classes.values():
            for queue in same.queues.values():
                yield from (sequence for _, sequence in queue)

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence, by its arrival: one that was put back keeps its place."""
        self._classes.setdefault(sequence.submit.priority, _Class()).push(sequence)
        self._size += 1

    def first(self) -> Sequence | None:
        """The one that is next, without taking it."""
        if not self._size:
            return None
        return self._classes[max(priority for priority, same in self._classes.items() if same.queues)].first()

    def remove(self, sequence: Sequence) -> None:
        """Take one out that ended before it started."""
        self._classes[sequence.submit.priority].remove(sequence)
        self._size -= 1
        self._tidy(sequence)

    def start(self, sequence: Sequence) -> None:
        """Take one out that runs from now on."""
        self._classes[sequence.submit.priority].start(sequence)
        self._size -= 1

    def stop(self, sequence: Sequence) -> None:
        """One that ran does not any more."""
        same = self._classes[sequence.submit.priority]
        same.running[sequence.submit.tenant] -= 1
        if not same.running[sequence.submit.tenant]:
            del same.running[sequence.submit.tenant]
        self._tidy(sequence)

    def charge(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        """Count what a sequence is given, against its tenant."""
        submit = sequence.submit
        cost = (PROMPT_COST * prompt_tokens + OUTPUT_COST * output_tokens) / submit.weight
        self._classes[submit.priority].counters[submit.tenant] += cost

    def turn(self, sequence: Sequence) -> Turn:
        """When it is a sequence's turn to have its prompt read, whether it waits or runs."""
        submit = sequence.submit
        return -submit.priority, self._classes[submit.priority].counters[submit.tenant], sequence.arrival

    def rank(self, sequence: Sequence) -> Turn:
        """Where a waiting sequence would stand in `ranked`."""
        submit = sequence.submit
        running = self._classes[submit.priority].running.get(submit.tenant, 0)
        return -submit.priority, (running + 1) / submit.weight, sequence.arrival

    def _tidy(self, sequence: Sequence) -> None:
        same = self._classes[sequence.submit.priority]
        if same.queues or same.running:
            same.forget_absent()
        else:
            del self._classes[sequence.submit.priority]


class _Class:
    """The sequences of one priority. Mutable: `queues` (waiting ones by tenant, oldest first), `running` (how many of
    each tenant), `counters` (served tokens by weight, also of tenants that have left in debt), `_last` (who was the
    last to start).
    """

    def __init__(self) -> None:
        self.queues: dict[str, list[tuple[int, Sequence]]] = {}
        self.running: dict[str, int] = {}
        self.counters: dict[str, float] = {}
        self._last = ""

    def push(self, sequence: Sequence) -> None:
        tenant = sequence.submit.tenant
        if tenant not in self.queues:
            self.counters[tenant] = max(self.counters.get(tenant, 0.0), self._level())
        heapq.heappush(self.queues.setdefault(tenant, []), (sequence.arrival, sequence))

    def first(self) -> Sequence:
        tenant = min(self.queues, key=lambda name: (self.counters[name], self.queues[name][0][0]))
        return self.queues[tenant][0][1]

    def start(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self._last = sequence.submit.tenant
        self.running[self._last] = self.running.get(self._last, 0) + 1

    def remove(self, sequence: Sequence) -> None:
        queue = self.queues[sequence.submit.tenant]
        if queue[0][1] is sequence:
            heapq.heappop(queue)
        else:
            queue.remove((sequence.arrival, sequence))
            heapq.heapify(queue)
        if not queue:
            del self.queues[sequence.submit.tenant]

    def forget_absent(self) -> None:
        """Drop the counters of tenants that are gone, if those would be lifted on their return anyway."""
        if len(self.counters) <= _MOST_ABSENT + len(self.queues) + len(self.running):
            return
        level = self._level()
        present = {*self.queues, *self.running, self._last}
        self.counters = {name: count for name, count in self.counters.items() if name in present or count > level}

    def _level(self) -> float:
        """Where a tenant begins that has not waited."""
        if self.queues:
            return min(self.counters[name] for name in self.queues)
        return self.counters.get(self._last, 0.0)


def ranked(running: Iterable[Sequence]) -> list[tuple[Turn, Sequence]]:
    """Running sequences; the last ones are the first to make room.

    By priority, then each tenant's first one, each one's second and so on, by weight: so that who has the most in
    the engine gives way, and not who came last.
    """
    found: list[tuple[Turn, Sequence]] = []
    held: Counter[tuple[int, str]] = Counter()
    for sequence in sorted(running, key=lambda one: one.arrival):
        submit = sequence.submit
        held[submit.priority, submit.tenant] += 1
        share = held[submit.priority, submit.tenant] / submit.weight
        found.append(((-submit.priority, share, sequence.arrival), sequence))
    return sorted(found, key=lambda one: one[0])
