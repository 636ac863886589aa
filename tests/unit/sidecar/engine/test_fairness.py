"""Who is next: tenants by the tokens they were served, whoever sent the most requests. The queue alone, then whole runs
of the scheduler on a clock whose seconds are a step's tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from sidecar.engine.fairness import WaitingQueue, ranked
from sidecar.engine.prefix_cache import PrefixCache
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Finish, Sampling, Submit


def waiting(tenant: str, arrival: int, *, weight: float = 1.0, priority: int = 0) -> Sequence:
    submit = Submit(f"{tenant}{arrival}", 0, [1], 4, Sampling(), [], tenant=tenant, weight=weight, priority=priority)
    return Sequence(submit, arrival, record=arrival)


def start(queue: WaitingQueue) -> Sequence:
    first = queue.first()
    assert first is not None
    queue.start(first)
    return first


def served(queue: WaitingQueue, turns: int) -> Counter[str]:
    """Serve `turns` equal sequences one after the other, and count them by tenant."""
    order: Counter[str] = Counter()
    for _ in range(turns):
        sequence = start(queue)
        queue.charge(sequence, 10, 5)
        queue.stop(sequence)
        order[sequence.submit.tenant] += 1
    return order


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    queue = WaitingQueue()
    for arrival in (2, 0, 1):
        queue.push(waiting("a", arrival))
    assert [start(queue).arrival for _ in range(3)] == [0, 1, 2]
    assert queue.first() is None


def test_a_flood_of_one_tenant_does_not_hold_up_another() -> None:
    queue = WaitingQueue()
    for arrival in range(50):
        queue.push(waiting("flood", arrival))
    for arrival in range(50, 55):
        queue.push(waiting("quiet", arrival))
    assert served(queue, 10) == {"flood": 5, "quiet": 5}


def test_twice_the_weight_is_twice_the_tokens() -> None:
    queue = WaitingQueue()
    for arrival in range(40):
        queue.push(waiting("heavy", arrival, weight=2.0))
        queue.push(waiting("light", 100 + arrival))
    assert served(queue, 30) == {"heavy": 20, "light": 10}


def test_idle_time_is_no_credit() -> None:
    queue = WaitingQueue()
    for arrival in range(40):
        queue.push(waiting("busy", arrival))
    served(queue, 20)
    for arrival in range(100, 120):
        queue.push(waiting("late", arrival))
    assert served(queue, 10) == {"busy": 5, "late": 5}


def test_who_comes_to_an_empty_queue_begins_where_the_last_one_stands() -> None:
    queue = WaitingQueue()
    queue.push(waiting("busy", 0))
    running = start(queue)
    queue.charge(running, 1000, 0)
    queue.push(waiting("late", 1))
    for arrival in range(2, 12):
        queue.push(waiting("busy", arrival))
        queue.push(waiting("late", 10 + arrival))
    assert served(queue, 10) == {"busy": 5, "late": 5}


def test_priority_goes_before_fairness() -> None:
    queue = WaitingQueue()
    queue.push(waiting("a", 0))
    queue.push(waiting("b", 1, priority=1))
    assert start(queue).submit.tenant == "b"


def test_tenants_of_one_priority_are_fair_to_each_other_whatever_waits_below_them() -> None:
    queue = WaitingQueue()
    queue.push(waiting("starved", 0))
    for arrival in range(1, 11):
        queue.push(waiting("early", arrival, priority=1))
    served(queue, 6)
    for arrival in range(11, 21):
        queue.push(waiting("late", arrival, priority=1))
    # The late one is not lifted to the starved one only, which would give it all the next turns.
    assert served(queue, 4) == {"early": 2, "late": 2}


def test_a_debt_is_not_forgotten_by_leaving_for_a_moment() -> None:
    queue = WaitingQueue()
    queue.push(waiting("big", 0))
    for arrival in range(1, 20):
        queue.push(waiting("small", arrival))
    big = start(queue)
    queue.charge(big, 100, 0)
    queue.stop(big)
    queue.push(waiting("big", 30))
    assert served(queue, 5) == {"small": 5}


def test_debts_are_kept_however_many_have_left() -> None:
    queue = WaitingQueue()
    for arrival in range(10):
        queue.push(waiting("small", arrival))
    for arrival in range(10, 200):
        queue.push(waiting(f"big{arrival}", arrival))
        big = next(one for one in queue if one.arrival == arrival)
        queue.start(big)
        queue.charge(big, 100, 0)
        queue.stop(big)
    queue.push(waiting("big10", 300))
    assert served(queue, 5) == {"small": 5}


def test_counters_of_tenants_that_owe_nothing_are_dropped() -> None:
    queue = WaitingQueue()
    queue.push(waiting("busy", 0))
    busy = start(queue)
    queue.charge(busy, 10_000, 0)
    queue.push(waiting("busy", 1))
    for arrival in range(2, 500):
        queue.push(waiting(f"once{arrival}", arrival))
        visitor = next(one for one in queue if one.arrival == arrival)
        queue.start(visitor)
        queue.stop(visitor)
    (same,) = queue._classes.values()
    assert len(same.counters) < 100


def test_an_idle_engine_owes_nobody_anything() -> None:
    queue = WaitingQueue()
    queue.push(waiting("a", 0))
    served(queue, 1)
    queue.push(waiting("b", 1))
    queue.push(waiting("a", 2))
    assert served(queue, 2) == {"a": 1, "b": 1}
    queue.push(waiting("a", 3))
    assert len(queue) == 1
    assert [sequence.arrival for sequence in queue] == [3]
    assert not queue._classes[0].running


def test_the_last_in_rank_is_the_newest_of_who_has_the_most() -> None:
    crowd = [waiting("a", n) for n in range(4)] + [waiting("b", 4), waiting("c", 5, weight=2.0)]
    low = waiting("d", -1, priority=-1)
    names = [one.submit.request_id for _, one in ranked([*crowd, low])]
    assert names == ["c5", "a0", "b4", "a1", "a2", "a3", "d-1"]


# --- whole runs ---

SLOTS = 8
BUDGET = 64


@dataclass
class Run:
    """A scheduler on a clock: a step takes as long as two tokens and those it computes. Mutable: all."""

    slots: int = SLOTS
    blocks: int = 10_000
    seconds: float = 0.0
    computed: Counter[str] = field(default_factory=Counter)
    cost: Counter[str] = field(default_factory=Counter)
    first_token: dict[str, float] = field(default_factory=dict)
    came: dict[str, float] = field(default_factory=dict)
    # Of this tenant, each that ends is followed by another like it.
    endless: str = ""
    arrivals: Iterable[int] = field(default_factory=count)
    _numbers: Iterator[int] = field(init=False)
    room: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = iter(self.arrivals)
        self.room = Scheduler(
            SlotPool(self.slots, 100_000), BUDGET, prefixes=PrefixCache(self.blocks) if self.blocks else None
        )

    def send(
        self,
        tenant: str,
        prompt: int = 30,
        most: int = 40,
        *,
        weight: float = 1.0,
        priority: int = 0,
        same: bool = False,
    ) -> str:
        number = next(self._numbers)
        name = f"{tenant}{number}"
        # No two prompts begin alike, unless they are to.
        ids = [0 if same else number + 1, *range(1, prompt)]
        submit = Submit(name, 0, ids, most, Sampling(), [], tenant=tenant, weight=weight, priority=priority)
        self.came[name] = self.seconds
        self.room.add(Sequence(submit, number, record=0))
        return name

    def step(self) -> None:
        batch = self.room.schedule()
        self.seconds += 2 + sum(chunk.count for chunk in batch.chunks)
        for chunk in batch.chunks:
            one = chunk.sequence
            self.computed[one.submit.tenant] += chunk.count
            self.cost[one.submit.tenant] += 2 * chunk.samples + chunk.count * (chunk.start < one.prompt_tokens)
            self.room.computed(chunk, int(chunk.samples))
            if chunk.samples:
                self.first_token.setdefault(one.submit.request_id, self.seconds)
                one.append(9)
            if one.phase is Phase.ENDED:
                self.room.retire(one)
                if one.submit.tenant == self.endless:
                    self.send(self.endless, one.prompt_tokens, one.generated)

    def until(self, seconds: float) -> None:
        while self.seconds < seconds and self.room.has_work:
            self.step()

    def wait(self, name: str) -> float:
        return self.first_token[name] - self.came[name]


def flooded(queued: int, blocks: int = 10_000) -> list[float]:
    """The waits of a tenant's two requests, which come while another's run and `queued` of those wait."""
    run = Run(blocks=blocks, endless="flood")
    for _ in range(queued):
        run.send("flood")
    run.until(1500)
    names = [run.send("quiet"), run.send("quiet")]
    run.until(4000)
    return [run.wait(name) for name in names]


def test_two_requests_beside_fifty_of_another_tenant_wait_as_in_a_half_idle_engine() -> None:
    half_idle = flooded(SLOTS // 2)
    longest_step = 2 + BUDGET
    for busy, idle in zip(flooded(50), half_idle, strict=True):
        assert busy <= idle + 2 * longest_step


def test_without_kept_prefixes_nobody_makes_way_and_the_next_free_slot_is_the_quiet_one_s() -> None:
    run = Run(blocks=0)
    for _ in range(50):
        run.send("flood")
    run.until(300)
    assert len(run.room.running) == SLOTS
    name = run.send("quiet")
    while name not in run.first_token:
        run.step()
    assert run.room.preemptions == 0
    assert len([one for one in run.first_token if one.startswith("flood")]) <= 2 * SLOTS


@pytest.mark.parametrize("most", [1, 40, 200])
def test_weights_of_three_to_one_are_shares_of_three_to_one(most: int) -> None:
    run = Run()
    for _ in range(400):
        run.send("heavy", most=most, weight=3.0)
    for _ in range(400):
        run.send("light", most=most)
    run.until(400 * most)
    assert run.room.waiting.first() is not None
    before = Counter(run.computed)
    run.until(run.seconds + 200 * (30 + most))
    got = run.computed - before
    assert {one.submit.tenant for one in run.room.waiting} == {"heavy", "light"}
    assert got["heavy"] / got["light"] == pytest.approx(3, rel=0.1)


def test_shares_are_of_tokens_and_not_of_requests() -> None:
    run = Run()
    for _ in range(600):
        run.send("long", prompt=200, most=50)
        run.send("short", prompt=20, most=10)
    run.until(20_000)
    assert {one.submit.tenant for one in run.room.waiting} == {"long", "short"}
    assert run.cost["long"] == pytest.approx(run.cost["short"], rel=0.1)


def test_a_tenant_that_idled_shares_from_when_it_comes_and_catches_nothing_up() -> None:
    run = Run()
    for _ in range(500):
        run.send("busy")
    run.until(10_000)
    for _ in range(200):
        run.send("late")
    before = Counter(run.computed)
    run.until(run.seconds + 5000)
    got = run.computed - before
    assert got["late"] / got["busy"] == pytest.approx(1, rel=0.1)


def test_one_after_the_other_s_big_requests_do_not_get_more_than_a_queue_of_small_ones() -> None:
    run = Run(slots=1, endless="big")
    run.send("big", prompt=300, most=100)
    for _ in range(900):
        run.send("small", prompt=20, most=10)
    run.until(20_000)
    assert {one.submit.tenant for one in run.room.waiting} >= {"small"}
    assert run.cost["big"] == pytest.approx(run.cost["small"], rel=0.1)


def test_a_short_prompt_does_not_wait_for_another_tenant_s_long_one_to_be_read() -> None:
    run = Run()
    run.send("long", prompt=50 * BUDGET)
    run.until(5 * BUDGET)
    name = run.send("short")
    run.until(20 * BUDGET)
    assert run.wait(name) <= 3 * (BUDGET + 2)


def test_two_long_prompts_of_two_tenants_are_read_side_by_side() -> None:
    run = Run()
    run.send("a", prompt=50 * BUDGET)
    run.until(4 * BUDGET)
    run.send("b", prompt=50 * BUDGET)
    before = Counter(run.computed)
    run.until(run.seconds + 20 * BUDGET)
    got = run.computed - before
    assert abs(got["a"] - got["b"]) <= BUDGET


def test_what_is_computed_again_is_not_paid_again() -> None:
    run = Run(slots=2, blocks=0)
    run.room.pool.capacity_tokens = 200
    run.send("a", prompt=60, most=90)
    run.send("b", prompt=60, most=90)
    paid: dict[str, float] = {}
    while run.room.has_work:
        paid = dict(run.room.waiting._classes[0].counters)
        run.step()
    assert run.room.preemptions > 0
    # The prompt of one of them was computed twice.
    assert run.computed["a"] + run.computed["b"] > 2 * (60 + 89) + 60
    # The last step's token of one of them is not in.
    assert sum(paid.values()) == 2 * (60 + 2 * 90) - 2


def test_what_came_from_the_prefix_cache_is_not_paid() -> None:
    run = Run()
    run.send("first", prompt=200, most=1, same=True)
    run.send("stays", prompt=1, most=1000)
    run.until(300)
    run.send("next", prompt=200, most=9, same=True)
    counters = run.room.waiting._classes[0].counters
    before = counters["next"]
    run.step()
    # Eight tokens were computed and one was said.
    assert counters["next"] == before + 8 + 2


def test_a_higher_priority_finds_a_place_in_a_full_engine() -> None:
    run = Run()
    for _ in range(20):
        run.send("low", most=500)
    run.until(1000)
    name = run.send("high", priority=1)
    run.step()
    run.step()
    assert name in run.first_token


def test_who_has_made_way_once_is_left_in_peace() -> None:
    run = Run(slots=2)
    run.send("flood", most=2000)
    run.send("flood", most=2000)
    run.until(200)
    for _ in range(30):
        name = run.send("quiet", prompt=5, most=2)
        while name not in run.first_token:
            run.step()
        run.until(run.seconds + 30)
    # The newest gave its place once; after that the quiet one's requests wait for nobody but each other.
    assert run.room.preemptions == 1


def test_the_older_of_equals_does_not_take_the_other_s_place() -> None:
    run = Run(slots=1, arrivals=[5, 3])
    run.send("a", most=200)
    run.until(100)
    name = run.send("b")
    run.until(200)
    assert (run.room.preemptions, name in run.first_token) == (0, False)


def test_who_makes_way_need_not_be_read_to_its_end_first() -> None:
    run = Run(slots=4)
    run.room.pool.capacity_tokens = 300
    run.send("flood", prompt=5, most=200)
    run.send("flood", prompt=200, most=5)
    run.step()
    name = run.send("quiet", prompt=230, most=1)
    run.step()
    assert run.room.preemptions == 1
    run.until(500)
    assert name in run.first_token


def test_nobody_makes_way_for_one_who_could_not_start_all_the_same() -> None:
    run = Run(slots=4)
    run.room.pool.capacity_tokens = 300
    run.send("flood", most=200)
    run.send("flood", most=200)
    run.until(100)
    run.send("quiet", prompt=290, most=5)
    run.until(200)
    assert run.room.preemptions == 0
    run.room.end(run.room.all()[0], Finish.CANCELLED)
