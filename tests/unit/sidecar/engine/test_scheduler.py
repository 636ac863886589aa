"""What the scheduler promises, whatever arrives: no step above its budget, no slot twice, no sequence lost."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.engine.batch import Batch, Chunk, Load
from sidecar.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Finish, Sampling, Submit

CAPACITY = 40
SLOTS = 3
BUDGET = 8


def sequence(name: str, prompt: int | list[int], most: int = 4, *, arrival: int = 0, **told: object) -> Sequence:
    ids = list(range(prompt)) if isinstance(prompt, int) else prompt
    submit = Submit(name, 0, ids, most, Sampling(), [], **told)  # type: ignore[arg-type]  # a test's shorthand
    return Sequence(submit, arrival, record=arrival)


def scheduler(
    slots: int = SLOTS,
    capacity: int = CAPACITY,
    budget: int = BUDGET,
    *,
    blocks: int = 0,
    chunks: bool = True,
    speculation: int = 0,
) -> Scheduler:
    prefixes = PrefixCache(blocks) if blocks else None
    return Scheduler(SlotPool(slots, capacity), budget, prefixes=prefixes, chunks=chunks, speculation=speculation)


@dataclass
class Memory:
    """What a tier has in its slots and its store, as tokens. Each chunk must find those before it."""

    slots: dict[int, list[int]] = field(default_factory=dict)
    blocks: dict[int, list[int]] = field(default_factory=dict)

    def run(self, batch: Batch) -> None:
        for copy in batch.copies:
            slot = self.slots.setdefault(copy.slot, [])
            for place, block in copy.pairs:
                at = slice(place * BLOCK_TOKENS, (place + 1) * BLOCK_TOKENS)
                if isinstance(copy, Load):
                    slot[at] = self.blocks[block]
                else:
                    self.blocks[block] = slot[at]
        for chunk in batch.chunks:
            slot = self.slots.setdefault(chunk.sequence.slot, [])
            assert slot[: chunk.start] == chunk.sequence.tokens[: chunk.start]
            assert len(chunk.tokens) == chunk.count
            slot[chunk.start :] = chunk.tokens


def step(room: Scheduler, memory: Memory | None = None, *, right: int = 0) -> Batch:
    """Schedule, and give each sampling sequence a token, and of its guesses so many as are `right`."""
    batch = room.schedule()
    if memory is not None:
        memory.run(batch)
    for chunk in batch.chunks:
        give(room, chunk, right)
    return batch


def give(room: Scheduler, chunk: Chunk, right: int = 0) -> None:
    one = chunk.sequence
    tokens = [*chunk.draft[:right], 9] if chunk.samples else []
    room.computed(chunk, len(tokens))
    for token in tokens:
        one.append(token)
        if one.phase is Phase.ENDED:
            room.retire(one)
            break


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


def test_a_prompt_that_begins_as_an_earlier_one_is_copied_and_not_computed() -> None:
    room, memory = scheduler(capacity=1000, budget=512, blocks=8), Memory()
    room.add(sequence("a", 150, 1))
    step(room, memory)
    again = sequence("b", 150, 3, arrival=1)
    room.add(again)
    batch = step(room, memory)
    assert [(chunk.start, chunk.count) for chunk in batch.prefills] == [(128, 22)]
    assert (again.cached, batch.cached_tokens, batch.queried_tokens) == (128, 128, 150)
    assert room.pool.used_tokens == again.held == 150
    assert room.prefix_tokens == 128


def test_a_prompt_is_kept_as_soon_as_it_is_computed() -> None:
    room, memory = scheduler(capacity=1000, budget=512, blocks=8), Memory()
    room.add(sequence("a", 150, 90))
    step(room, memory)
    room.add(sequence("b", 150, 90, arrival=1))
    assert step(room, memory).cached_tokens == 128


def test_an_answer_is_kept_for_the_next_turn_of_a_conversation() -> None:
    room, memory = scheduler(capacity=1000, budget=512, blocks=8), Memory()
    first = sequence("a", 100, 40)
    room.add(first)
    while room.has_work:
        step(room, memory)
    room.add(sequence("b", [*first.tokens, 5, 6, 7], 1, arrival=1))
    batch = step(room, memory)
    assert batch.cached_tokens == 128


def test_another_scope_gains_nothing() -> None:
    room = scheduler(capacity=1000, budget=512, blocks=8)
    room.add(sequence("a", 150, 1, cache_scope="a:1"))
    step(room)
    room.add(sequence("b", 150, 1, arrival=1, cache_scope="a:2"))
    batch = step(room)
    assert (batch.cached_tokens, batch.queried_tokens, batch.prefills[0].count) == (0, 150, 150)


def test_a_prompt_that_is_scored_is_computed_whole_and_leaves_nothing() -> None:
    room = scheduler(capacity=1000, budget=512, blocks=8)
    room.add(sequence("a", 150, 1, prompt_logprobs=0))
    while room.has_work:
        step(room)
    assert room.prefix_tokens == 0
    room.add(sequence("b", 150, 1, arrival=1))
    step(room)
    room.add(sequence("c", 150, 1, arrival=2, prompt_logprobs=0))
    batch = step(room)
    assert (batch.cached_tokens, batch.queried_tokens, batch.prefills[0].start) == (0, 0, 0)


def test_what_failed_leaves_nothing_and_takes_with_it_what_it_began_with() -> None:
    room = scheduler(capacity=1000, budget=512, blocks=8)
    room.add(sequence("a", 150, 1))
    step(room)
    failing = sequence("b", 150, 9, arrival=1)
    room.add(failing)
    room.schedule()
    assert failing.cached == 128
    room.end(failing, Finish.ERROR, "no number")
    assert (room.prefix_tokens, room.pool.used_tokens) == (0, 0)


def test_who_is_preempted_finds_what_it_had_computed() -> None:
    room, memory = scheduler(capacity=400, budget=512, blocks=16), Memory()
    old, new = sequence("old", 150, 120), sequence("new", [7] * 150, 120, arrival=1)
    room.add(old)
    room.add(new)
    while not room.preemptions:
        step(room, memory)
    assert new.phase is Phase.WAITING
    batch = step(room, memory)
    while new.phase is Phase.WAITING:
        batch = step(room, memory)
    (chunk,) = batch.prefills
    assert chunk.start >= 128
    # It was not cached for the client, nor is it counted as if it had been looked for by a new one.
    assert (new.cached, batch.cached_tokens, batch.queried_tokens) == (0, 0, 0)


def test_a_step_that_copies_much_computes_less() -> None:
    room = scheduler(slots=8, capacity=10000, budget=16, blocks=64)
    room.add(sequence("a", 640, 1))
    while room.has_work:
        step(room)
    for arrival in range(1, 5):
        room.add(sequence(f"b{arrival}", 644, 1, arrival=arrival))
    batch = step(room)
    # Ten blocks and four tokens for the first, two blocks' worth are left for the second.
    assert [chunk.count for chunk in batch.prefills] == [4]
    assert len(room.running) == 1


def test_without_chunks_a_prompt_above_the_budget_is_read_whole_and_with_no_other() -> None:
    room = scheduler(capacity=1000, chunks=False)
    short, long, last = sequence("a", 3, 9), sequence("b", 30, 9, arrival=1), sequence("c", 3, 9, arrival=2)
    room.add(short)
    step(room)
    for one in (long, last):
        room.add(one)
    batch = step(room)
    assert [(chunk.sequence, chunk.count) for chunk in batch.chunks] == [(short, 1), (long, 30)]
    batch = step(room)
    assert [(chunk.sequence, chunk.count) for chunk in batch.chunks] == [(short, 1), (long, 1), (last, 3)]


def test_without_chunks_prompts_that_fit_share_a_step_and_one_that_does_not_waits_for_the_next() -> None:
    room = scheduler(capacity=1000, chunks=False)
    for arrival, prompt in enumerate((3, 4, 5)):
        room.add(sequence(str(arrival), prompt, 9, arrival=arrival))
    assert [chunk.count for chunk in step(room).prefills] == [3, 4]
    assert [chunk.count for chunk in step(room).prefills] == [5]


def test_without_chunks_a_scored_prompt_is_not_cut_either() -> None:
    room = scheduler(capacity=1000, budget=512, chunks=False)
    room.add(sequence("a", 200, 1, prompt_logprobs=1))
    assert [chunk.count for chunk in step(room).prefills] == [200]


def test_where_there_is_no_room_for_guesses_none_are_made() -> None:
    room = scheduler(capacity=13, budget=16, speculation=4)
    one = sequence("a", [1, 2, 3, 1, 2, 3, 1, 2, 3], 4)
    room.add(one)
    step(room)
    one.tokens[-1] = 1
    batch = step(room, right=2)
    # Of the four tokens it may say one is said, and one is not guessed but picked.
    assert [len(chunk.draft) for chunk in batch.chunks] == [2]
    assert (one.generated, room.pool.used_tokens) == (4, 0)


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 90), st.integers(0, 2), st.sampled_from("xyz"), st.integers(0, 5)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("chunks", [True, False])
@settings(max_examples=75)
@given(
    arrivals=ARRIVALS,
    ended=st.dictionaries(
        st.integers(0, 11), st.tuples(st.integers(0, 60), st.sampled_from([Finish.CANCELLED, Finish.ERROR]))
    ),
    blocks=st.integers(0, 12),
    speculation=st.integers(0, 4),
    right=st.integers(0, 4),
)
def test_every_sequence_ends_finds_what_it_computed_and_no_step_takes_more_than_it_may(  # noqa: PLR0917
    chunks: bool,
    arrivals: list[tuple[int, int, int, str, int]],
    ended: dict[int, tuple[int, Finish]],
    blocks: int,
    speculation: int,
    right: int,
) -> None:
    capacity, budget = 320, 48
    room = scheduler(
        capacity=capacity, budget=budget, blocks=blocks, chunks=chunks, speculation=speculation if chunks else 0
    )
    memory = Memory()
    # Few different tokens: many prompts begin alike, and many guesses can be made.
    made = [
        sequence(
            str(n), [n % 2] * prompt, most, arrival=n, priority=priority, tenant=tenant, weight=1 + n % 3,
            cache_scope=tenant if n % 4 else "", prompt_logprobs=None if n % 5 else 0,
        )
        for n, (prompt, most, priority, tenant, _) in enumerate(arrivals)
    ]  # fmt: skip
    pending = list(zip(made, (wait for *_, wait in arrivals), strict=True))
    for turn in range(3000):
        while pending and (pending[0][1] <= turn or not room.has_work):
            room.add(pending.pop(0)[0])
        for number, (when, finish) in ended.items():
            if when == turn and number < len(made) and room.find(str(number), 0) is not None:
                room.end(made[number], finish)
        if not room.has_work and not pending:
            break
        batch = room.schedule()
        memory.run(batch)
        longest = max((chunk.count for chunk in batch.prefills if not chunk.draft), default=0)
        assert sum(chunk.count for chunk in batch.chunks) <= max(budget, 0 if chunks else longest + SLOTS)
        assert room.pool.used_tokens <= capacity
        assert room.pool.used_tokens == sum(running.held for running in room.running)
        for chunk in batch.chunks:
            finish_or_give(room, chunk, right)
        slots = [running.slot for running in room.running]
        assert len(set(slots)) == len(slots) <= SLOTS
        assert room.pool.used_tokens == sum(running.computed for running in room.running)
    assert all(one.phase is Phase.ENDED for one in made)
    assert all(one.finish is not Finish.LENGTH or one.generated == one.submit.max_new_tokens for one in made)
    assert all(one.finish is Finish.LENGTH or int(one.submit.request_id) in ended for one in made)
    assert (room.pool.used_tokens, room.pool.has_free_slot) == (0, True)
    assert sorted(room.pool.take() for _ in range(SLOTS)) == [0, 1, 2]
    assert room.prefix_tokens <= blocks * BLOCK_TOKENS


def finish_or_give(room: Scheduler, chunk: Chunk, right: int) -> None:
    """As the core does it: who wanted only its prompt computed ends then."""
    give(room, chunk, right)
    if chunk.sequence.submit.max_new_tokens == 0 and chunk.completes:
        room.end(chunk.sequence, Finish.LENGTH)
