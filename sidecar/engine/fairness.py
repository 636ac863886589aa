"""Which waiting sequence is next: higher priority first, then tenants in turn by the tokens they were served.

Virtual token counters with counter lift (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
arXiv 2401.00588): each tenant has a counter of served tokens divided by its weight, the lowest goes first, and a tenant
that comes back is lifted to the lowest of those present, so that idle time is no credit.
"""

import heapq
from collections.abc import Iterator

from sidecar.engine.sequence import Sequence

# The paper's weights: a generated token costs about twice a prompt token.
PROMPT_COST = 1.0
OUTPUT_COST = 2.0


class WaitingQueue:
    """Mutable: `_queues` (waiting sequences by priority and tenant, oldest first), `_counters` (served tokens by
    weight), `_size`.
    """

    def __init__(self) -> None:
        self._queues: dict[int, dict[str, list[tuple[int, Sequence]]]] = {}
        self._counters: dict[str, float] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for tenants in self._queues.values():
            for queue in tenants.values():
                yield from (sequence for _, sequence in queue)

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence, by its arrival: a preempted one keeps its place."""
        tenant = sequence.submit.tenant
        if not any(tenant in tenants for tenants in self._queues.values()):
            self._lift(tenant)
        queue = self._queues.setdefault(sequence.submit.priority, {}).setdefault(tenant, [])
        heapq.heappush(queue, (sequence.arrival, sequence))
        self._size += 1

    def first(self) -> Sequence | None:
        """The one that is next, without taking it."""
        if not self._size:
            return None
        tenants = self._queues[max(self._queues)]
        tenant = min(tenants, key=lambda name: (self._counters.get(name, 0.0), tenants[name][0][0]))
        return tenants[tenant][0][1]

    def remove(self, sequence: Sequence) -> None:
        priority, tenant = sequence.submit.priority, sequence.submit.tenant
        queue = self._queues[priority][tenant]
        queue.remove((sequence.arrival, sequence))
        heapq.heapify(queue)
        self._size -= 1
        if not queue:
            del self._queues[priority][tenant]
            if not self._queues[priority]:
                del self._queues[priority]

    def served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        """Count what a sequence was given, against its tenant."""
        tenant = sequence.submit.tenant
        cost = (PROMPT_COST * prompt_tokens + OUTPUT_COST * output_tokens) / sequence.submit.weight
        self._counters[tenant] = self._counters.get(tenant, 0.0) + cost

    def keep_only(self, running: set[str]) -> None:
        """Forget the counters of tenants that neither wait nor run."""
        present = running | {tenant for tenants in self._queues.values() for tenant in tenants}
        for tenant in self._counters.keys() - present:
            del self._counters[tenant]

    def _lift(self, tenant: str) -> None:
        waiting = {name for tenants in self._queues.values() for name in tenants}
        others = [
            count for name, count in self._counters.items() if name != tenant and (not waiting or name in waiting)
        ]
        if others:
            self._counters[tenant] = max(self._counters.get(tenant, 0.0), min(others))
