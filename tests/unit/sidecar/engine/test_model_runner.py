"""A real model behind the real scheduler: what comes from the prefix cache changes no answer."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel
from typing_extensions import override

from sidecar.engine import attention
from sidecar.engine.batch import Batch, Chunk, DeviceLostError, Save
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.model_runner import BlockStore, ModelRunner
from sidecar.engine.packed import PackedForward, StockNetwork
from sidecar.engine.prefix_cache import BLOCK_TOKENS, Pair
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_attention import SlotContext
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Sampling, Submit

CONTEXT = 256


class Engine:
    """A runner and a scheduler without the process around them. Mutable: both, `arrivals` and `cached`."""

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int, prefix_tokens: int) -> None:
        cache = SlotCache(slots, CONTEXT)
        context = SlotContext(cache)
        attention.install(model, context, CONTEXT)
        self.runner = ModelRunner(PackedForward(StockNetwork(model), context, cache))
        warm = Sequence(Submit("warm", 0, [1, 2], 1, Sampling(), []), 0, record=0, slot=0)
        self.runner.run(Batch((), (Chunk(warm, 0, 2),)))
        pool = SlotPool(slots, capacity, self.runner.forward.release)
        self.scheduler = Scheduler(pool, 64, prefixes=self.runner.keep_prefixes(prefix_tokens))
        self.arrivals = 0
        self.cached: list[int] = []

    def run(self, *prompts: list[int], most: int = 20) -> list[list[int]]:
        """The greedy answers."""
        made = []
        for prompt in prompts:
            self.arrivals += 1
            submit = Submit(str(self.arrivals), 0, prompt, most, Sampling(temperature=0), [])
            made.append(Sequence(submit, self.arrivals, record=0))
            self.scheduler.add(made[-1])
        while self.scheduler.has_work:
            self._step()
        self.cached = [one.cached for one in made]
        return [one.tokens[one.prompt_tokens :] for one in made]

    def _step(self) -> None:
        batch = self.scheduler.schedule()
        if batch.copies:
            self.runner.copy(batch.copies)
        for outcome in self.runner.run(batch).outcomes:
            assert not outcome.failed
            self.scheduler.computed(outcome.chunk, len(outcome.tokens))
            for token in outcome.tokens:
                outcome.chunk.sequence.append(token)
            if outcome.chunk.sequence.phase is Phase.ENDED:
                self.scheduler.retire(outcome.chunk.sequence)


Make = Callable[..., Engine]


@pytest.fixture
def engine(tiny_model: PreTrainedModel) -> Make:
    def make(slots: int = 4, capacity: int = 1000, prefix_tokens: int = 1000) -> Engine:
        return Engine(tiny_model, slots=slots, capacity=capacity, prefix_tokens=prefix_tokens)

    return make


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 150, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_an_answer_is_the_same_when_its_prompt_was_computed_before(engine: Make) -> None:
    shared = prompt(150, 0)
    prompts = [shared + prompt(9, 1), shared + prompt(30, 2), prompt(40, 3)]
    plain = engine(prefix_tokens=0).run(*prompts)
    assert len({token for answer in plain for token in answer}) >= 8
    house = engine()
    assert house.run(*prompts) == plain
    assert house.run(*prompts) == plain
    assert house.cached == [128, 128, 0]
    # The answer too: the next turn of a conversation begins with it.
    longer = [prompts[1] + plain[1] + prompt(5, 4)]
    assert house.run(*longer) == engine(prefix_tokens=0).run(*longer)
    assert house.cached == [192]


def test_an_answer_is_the_same_when_it_made_room_and_came_back(engine: Make) -> None:
    prompts = [prompt(90, 5), prompt(80, 6), prompt(100, 7)]
    plain = engine(prefix_tokens=0).run(*prompts, most=60)
    tight = engine(capacity=300)
    assert tight.run(*prompts, most=60) == plain
    assert tight.scheduler.preemptions > 0
    assert tight.cached == [0, 0, 0]


def test_a_store_that_is_much_too_small_only_costs_time(engine: Make) -> None:
    prompts = [prompt(150, seed) for seed in range(5)]
    plain = engine(prefix_tokens=0).run(*prompts)
    small = engine(slots=2, prefix_tokens=3 * BLOCK_TOKENS)
    for _ in range(2):
        assert small.run(*prompts) == plain
    assert small.scheduler.prefix_tokens == 3 * BLOCK_TOKENS


def test_less_than_a_block_is_no_prefix_cache(engine: Make) -> None:
    assert engine().runner.keep_prefixes(BLOCK_TOKENS - 1) is None
    assert engine().runner.keep_prefixes(BLOCK_TOKENS) is not None


class Storeless:
    """A tier that keeps nothing."""

    store: BlockStore | None = None
    bytes_per_token = 1

    def logits(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def keep(self, tokens: int) -> None:
        raise NotImplementedError

    def release(self, slot: int, *, spoiled: bool = False) -> None:
        raise NotImplementedError


def test_a_tier_without_a_store_has_no_prefix_cache() -> None:
    runner = ModelRunner(Storeless())
    assert runner.keep_prefixes(1 << 20) is None
    with pytest.raises(RuntimeError):
        runner.copy((Save(0, (Pair(0, 0),)),))


class Lost(Storeless):
    """On a GPU that has failed."""

    @override
    def logits(self, batch: Batch) -> torch.Tensor:
        raise torch.AcceleratorError(f"CUDA error, with {len(batch.chunks)} chunks")


def test_what_a_gpu_raises_is_no_fault_of_a_request() -> None:
    with pytest.raises(DeviceLostError, match="CUDA error, with 0 chunks"):
        ModelRunner(Lost()).run(Batch((), ()))


class LostLater(Storeless):
    """The failure is told when somebody waits for what was computed."""

    @override
    def logits(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(1, 9)


def test_what_a_gpu_raises_while_a_token_is_picked_is_no_fault_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("sidecar.engine.model_runner.sample", lost)
    submit = Submit("a", 0, [1], 1, Sampling(), [])
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        ModelRunner(LostLater()).run(Batch((Chunk(Sequence(submit, 0, record=0), 0, 1),), ()))
