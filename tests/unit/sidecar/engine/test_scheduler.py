"""What the scheduler promises, whatever arrives: no step above its budget, no slot twice, no sequence lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.engine.batch import Batch
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Finish, Sampling, Submit

CAPACITY = 40
SLOTS = 3
BUDGET = 8


def sequence(name: str, prompt: int, most: int = 4, *, arrival: int = 0, **told: object) -> Sequence:
    submit = Submit(name, 0, list(range(prompt)), most, Sampling(), [], **told)  # type: ignore[arg-type]  # a test's shorthand
    return Sequence(submit, arrival, record=arrival)


def scheduler(slots: int = SLOTS, capacity: int = CAPACITY, budget: int = BUDGET) -> Scheduler:
    return Scheduler(SlotPool(slots, capacity), budget)


def step(room: Scheduler) -> Batch:
    """Schedule, and give each sampling sequence a token."""
    batch = room.schedule()
    for chunk in batch.chunks:
        room.computed(chunk, int(chunk.samples))
    for chunk in batch.chunks:
        if len(chunk.sequence.tokens) == chunk.end:
            chunk.sequence.append(9)
            if chunk.sequence.phase is Phase.ENDED:
                room.retire(chunk.sequence)
    return batch


def test_a_prompt_longer_than_the_budget_comes_in_chunks_and_only_the_last_one_samples() -> None:
    room = scheduler()
    long = sequence("a", 19)
    room.add(long)
    spans = []
    for _ in range(3):
        batch = room.schedule()
        (chunk,) = batch.prefills
        spans.append((chunk.start, chunk.end, chunk.samples))
        room.computed(chunk, int(chunk.samples))
    assert spans == [(0, 8, False), (8, 16, False), (16, 19, True)]


def test_running_sequences_are_served_before_a_new_prompt_is_read_on() -> None:
    room = scheduler()
    first, second = sequence("a", 3, 10), sequence("b", 30, 10, arrival=1)
    room.add(first)
    step(room)
    room.add(second)
    batch = step(room)
    assert [chunk.sequence for chunk in batch.decodes] == [first]
    assert [(chunk.sequence, chunk.count) for chunk in batch.prefills] == [(second, BUDGET - 1)]


def test_decodes_come_in_order_of_their_slots() -> None:
    room = scheduler()
    for arrival, name in enumerate("abc"):
        room.add(sequence(name, 2, 2 if name == "a" else 9, arrival=arrival))
    step(room)
    step(room)
    room.add(sequence("d", 2, 9, arrival=3))
    step(room)
    batch = step(room)
    assert [chunk.sequence.submit.request_id for chunk in batch.decodes] == ["d", "b", "c"]
    assert [chunk.sequence.slot for chunk in batch.decodes] == [0, 1, 2]


def test_a_higher_priority_starts_first() -> None:
    room = scheduler(slots=1)
    room.add(sequence("low", 2, arrival=0))
    room.add(sequence("high", 2, arrival=1, priority=5))
    assert step(room).prefills[0].sequence.submit.request_id == "high"


def test_without_room_the_newest_is_put_back_and_computed_again() -> None:
    room = scheduler(capacity=12)
    old, new = sequence("old", 4, 8), sequence("new", 4, 8, arrival=1)
    room.add(old)
    room.add(new)
    while not room.preemptions:
        step(room)
    assert (old.phase, new.phase) == (Phase.RUNNING, Phase.WAITING)
    assert (new.slot, new.computed) == (-1, 0)
    produced = new.generated
    while new.phase is not Phase.ENDED:
        step(room)
    assert old.generated == new.generated == 8
    assert produced < 8
    assert room.pool.used_tokens == 0


def test_a_sequence_that_is_ended_early_frees_what_it_held() -> None:
    room = scheduler()
    running, waiting = sequence("a", 5), sequence("b", 5, arrival=1)
    room.add(running)
    step(room)
    room.add(waiting)
    room.end(running, Finish.CANCELLED)
    room.end(waiting, Finish.CANCELLED)
    assert not room.has_work
    assert room.pool.used_tokens == 0
    assert room.find("a", 0) is None


def test_expired_are_those_whose_deadline_has_passed() -> None:
    room = scheduler()
    for arrival, deadline in enumerate((None, 5.0, 6.0)):
        late = sequence(str(arrival), 2, arrival=arrival)
        late.deadline_s = deadline
        room.add(late)
    assert [expired.submit.request_id for expired in room.expired(5.5)] == ["1"]


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 2), st.sampled_from("xy"), st.integers(0, 5)),
        min_size=1,
        max_size=12,
    ),
    cancelled=st.sets(st.integers(0, 11), max_size=4),
)
def test_every_sequence_ends_and_no_step_takes_more_than_it_may(
    arrivals: list[tuple[int, int, int, str, int]], cancelled: set[int]
) -> None:
    room = scheduler()
    made = [
        sequence(str(n), prompt, most, arrival=n, priority=priority, tenant=tenant)
        for n, (prompt, most, priority, tenant, _) in enumerate(arrivals)
    ]
    waits = [wait for *_, wait in arrivals]
    pending = list(zip(made, waits, strict=True))
    for turn in range(3000):
        while pending and (pending[0][1] <= turn or not room.has_work):
            room.add(pending.pop(0)[0])
        if turn == 3:
            for number in cancelled:
                if number < len(made) and room.find(str(number), 0) is not None:
                    room.end(made[number], Finish.CANCELLED)
        if not room.has_work and not pending:
            break
        batch = step(room)
        assert sum(chunk.count for chunk in batch.chunks) <= BUDGET
        assert room.pool.used_tokens <= CAPACITY
        slots = [running.slot for running in room.running]
        assert len(set(slots)) == len(slots) <= SLOTS
        assert room.pool.used_tokens == sum(running.computed for running in room.running)
    assert all(one.phase is Phase.ENDED for one in made)
    assert all(one.finish is Finish.CANCELLED or one.generated == one.submit.max_new_tokens for one in made)
    assert room.pool.used_tokens == 0
