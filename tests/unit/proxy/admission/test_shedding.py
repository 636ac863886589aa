"""Who gives way under overload, when to come again, and that the work that is done stays worth doing."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest

from proxy.admission.gate import Admission
from proxy.admission.shedding import queue_share, wait_s
from proxy.load import Load
from sidecar.wire.internal import Endpoint

Build = Callable[..., Any]
PRIORITIES: Final = (0, 10, 20)


# --- the formula ---


@pytest.mark.parametrize(
    ("priority", "priorities", "filled"),
    [(7, {7}, 1.0), (0, {0, 20}, 0.5), (20, {0, 20}, 1.0), (10, {0, 10, 20}, 0.75), (1, {0, 1, 90, 91, 100}, 0.625)],
)
def test_a_priority_fills_the_queue_by_its_rank(priority: int, priorities: set[int], filled: float) -> None:
    assert queue_share(priority, priorities) == filled


@pytest.mark.parametrize(
    ("sequences", "filled", "waits"),
    [(3, 0.5, None), (11, 0.5, None), (12, 0.5, 1.0), (13, 0.5, 1.0), (15, 0.5, 2.0), (19, 1.0, None), (20, 1.0, 1.0)],
)
def test_a_wait_is_what_is_too_much_at_the_pace_of_late(sequences: int, filled: float, waits: Any) -> None:
    assert wait_s(Load(sequences, 4, 16, 2.0), filled) == waits


def test_a_wait_is_neither_a_moment_nor_for_ever() -> None:
    assert wait_s(Load(20, 4, 16, 1000.0), 1.0) == 1
    assert wait_s(Load(2000, 4, 16, 0.01), 1.0) == 60
    assert wait_s(Load(20, 4, 16, 0.0), 1.0) == 5


def test_where_no_sidecar_is_there_is_none_to_spare() -> None:
    assert wait_s(Load(0, 0, 0, 0.0), 0.5) is None


# --- at the gate ---


def loaded(house: Any, load: Load) -> None:
    house.gate = Admission(
        lambda: house.policy, house.meters, house.ledger, house.clock, storage_s=0.01, load=lambda _model: load
    )


async def test_f15_an_overloaded_server_says_when_to_come_again_and_takes_nothing(build: Build) -> None:
    house = build(requests_per_minute=5)
    loaded(house, Load(30, 4, 16, 2.0))
    error = await house.refused()
    assert (error.status, error.code, error.type) == (503, "server_is_overloaded", "service_unavailable_error")
    assert error.rule == "overload"
    headers = error.headers()
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("6", "5500", "true")
    assert headers["x-ratelimit-remaining-requests"] == "5"
    loaded(house, Load(19, 4, 16, 2.0))
    await house.admit()


async def test_f15_a_key_at_its_limit_is_told_that_first_and_nothing_is_counted(build: Build) -> None:
    house = build(bound=None, requests_per_minute=1)
    await house.admit()
    loaded(house, Load(30, 4, 16, 2.0))
    assert (await house.refused()).code == "rate_limit_exceeded"
    assert (await house.refused(key_id="other")).code == "server_is_overloaded"
    assert house.counted == 1


async def test_what_is_embedded_does_not_wait_for_the_engine(build: Build) -> None:
    house = build()
    loaded(house, Load(30, 4, 16, 2.0))
    await house.admit(endpoint=Endpoint.EMBEDDINGS, max_output_tokens=0)


# --- goodput ---


class Rush:
    """A sidecar of 8 places and a queue in the order of coming, each request a second's work, and three times as many
    clients as it can serve. A client waits 6 s for its answer; refused, it comes again as told, twice at most.

    Mutable: all of it, as time passes.
    """

    PLACES, QUEUE, WORK_S, PATIENCE_S, OFFERED_PER_S = 8, 32, 1.0, 6.0, 24

    def __init__(self, *, sheds: bool) -> None:
        self.sheds = sheds
        self.now_s = 0.0
        self.events: list[tuple[float, int, str, Any]] = []
        self.numbers = itertools.count()
        self.waiting: list[tuple[float, int]] = []
        self.busy = 0
        self.ends: list[float] = []
        self.good: Counter[int] = Counter()
        self.offered: Counter[int] = Counter()

    def at(self, when_s: float, what: str, of: Any) -> None:
        heapq.heappush(self.events, (when_s, next(self.numbers), what, of))

    def run(self, warm_up_s: float, until_s: float) -> float:
        """The answers in time, in each second after the warm-up."""
        draw = random.Random(15)
        come_s = 0.0
        while come_s < until_s:
            come_s += draw.expovariate(self.OFFERED_PER_S)
            self.at(come_s, "come", (draw.choice(PRIORITIES), 0))
        while self.events and self.events[0][0] < until_s:
            self.now_s, _, what, of = heapq.heappop(self.events)
            if what == "come":
                self.come(*of)
            else:
                self.end(of, counted=self.now_s > warm_up_s)
        return sum(self.good.values()) / (until_s - warm_up_s)

    def come(self, priority: int, tries: int) -> None:
        self.offered[priority] += not tries
        self.ends = [end_s for end_s in self.ends if end_s > self.now_s - 30]
        pace = len(self.ends) / max(1.0, min(30.0, self.now_s))
        load = Load(self.busy + len(self.waiting), self.PLACES, self.QUEUE, pace)
        wait = wait_s(load, queue_share(priority, PRIORITIES)) if self.sheds else None
        if wait is None:
            self.waiting.append((self.now_s, priority))
            self.begin()
        elif tries < 2:
            self.at(self.now_s + wait, "come", (priority, tries + 1))

    def begin(self) -> None:
        while self.waiting and self.busy < self.PLACES:
            self.busy += 1
            self.at(self.now_s + self.WORK_S, "end", self.waiting.pop(0))

    def end(self, of: tuple[float, int], *, counted: bool) -> None:
        self.busy -= 1
        self.ends.append(self.now_s)
        came_s, priority = of
        if counted and self.now_s - came_s <= self.PATIENCE_S:
            self.good[priority] += 1
        self.begin()


def test_f15_three_times_the_load_leaves_nine_tenths_of_the_peak() -> None:
    peak = Rush.PLACES / Rush.WORK_S
    rush = Rush(sheds=True)
    assert rush.run(10, 120) >= 0.9 * peak
    # The lowest gives way first: what there is goes to the highest.
    kept = [rush.good[priority] / rush.offered[priority] for priority in PRIORITIES]
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] > 0.8
    # What would be without: a server that works on answers nobody waits for any more.
    assert Rush(sheds=False).run(10, 120) < 0.1 * peak
