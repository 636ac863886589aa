"""Who is next: tenants by the tokens they were served, whoever sent the most requests."""

from collections import Counter

from sidecar.engine.fairness import WaitingQueue
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit


def waiting(tenant: str, arrival: int, *, weight: float = 1.0, priority: int = 0) -> Sequence:
    submit = Submit(f"{tenant}{arrival}", 0, [1], 4, Sampling(), [], tenant=tenant, weight=weight, priority=priority)
    return Sequence(submit, arrival, record=arrival)


def take(queue: WaitingQueue) -> Sequence:
    first = queue.first()
    assert first is not None
    queue.remove(first)
    return first


def served(queue: WaitingQueue, turns: int) -> Counter[str]:
    """Serve `turns` equal sequences, and count them by tenant."""
    order: Counter[str] = Counter()
    for _ in range(turns):
        sequence = take(queue)
        queue.served(sequence, 10, 5)
        order[sequence.submit.tenant] += 1
    return order


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    queue = WaitingQueue()
    for arrival in (2, 0, 1):
        queue.push(waiting("a", arrival))
    assert [take(queue).arrival for _ in range(3)] == [0, 1, 2]
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


def test_priority_goes_before_fairness() -> None:
    queue = WaitingQueue()
    queue.push(waiting("a", 0))
    queue.push(waiting("b", 1, priority=1))
    assert take(queue).submit.tenant == "b"


def test_a_tenant_that_left_is_forgotten() -> None:
    queue = WaitingQueue()
    queue.push(waiting("a", 0))
    served(queue, 1)
    queue.keep_only(set())
    queue.push(waiting("b", 1))
    queue.push(waiting("a", 2))
    assert take(queue).submit.tenant == "b"
    assert len(queue) == 1
    assert [sequence.arrival for sequence in queue] == [2]
