"""Whom to turn away when the sidecars have more to do than they can soon get done: the lowest priorities first.

A queue holds `in_queue` sequences beside the `at_once` that run. The highest priority of the policy may fill all of it,
the lowest half of it, those between by their rank: with n priorities, the one of rank r from below (0 … n - 1) may fill
1/2 + r / (2 (n - 1)) of the queue. Where there is one priority only, it may fill all. Pure.
"""

from collections.abc import Collection
from typing import Final

from proxy.load import Load

LEAST_SHARE: Final = 0.5
# Until something has ended nobody knows the pace.
UNKNOWN_PACE_S: Final = 5.0
SHORTEST_S: Final = 1.0
LONGEST_S: Final = 60.0


def queue_share(priority: int, priorities: Collection[int]) -> float:
    """How much of the queue a priority may fill; `priorities` are all that there are."""
    ranked = sorted(set(priorities))
    if len(ranked) < 2:
        return 1.0
    return LEAST_SHARE + (1 - LEAST_SHARE) * ranked.index(priority) / (len(ranked) - 1)


def wait_s(load: Load, filled: float) -> float | None:
    """None if one more may come of those that may fill so much of the queue; else how long it takes, at the pace of
    late, until one may.
    """
    places = load.at_once + int(load.in_queue * filled)
    # Without a place there is no sidecar to be spared: that is said elsewhere.
    if load.sequences < places or not places:
        return None
    if load.per_s <= 0:
        return UNKNOWN_PACE_S
    return min(LONGEST_S, max(SHORTEST_S, (load.sequences - places + 1) / load.per_s))
