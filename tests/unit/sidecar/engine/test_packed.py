"""Nothing that an ended sequence left in a slot reaches the next one, or a neighbour, not even NaN."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sidecar.engine.attention import install
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.packed import PackedForward, StockNetwork
from sidecar.engine.sequence import Sequence
from sidecar.engine.slot_attention import SlotContext
from sidecar.wire.frames import Sampling, Submit

POISON = 150


def sequence(slot: int, prompt: list[int], most: int = 1) -> Sequence:
    return Sequence(Submit(str(slot), 0, prompt, most, Sampling(), []), slot, record=slot, slot=slot)


@pytest.fixture
def forward(tiny_model: PreTrainedModel) -> PackedForward:
    """One token's embedding is not a number."""
    model: Any = tiny_model
    embedding = model.model.embed_tokens.weight
    model.lm_head.weight = torch.nn.Parameter(embedding.clone(), requires_grad=False)
    embedding[POISON] = torch.nan
    cache = SlotCache(2, 256)
    context = SlotContext(cache)
    install(tiny_model, context, cache.context)
    return PackedForward(StockNetwork(tiny_model), context, cache)


def cache_of(forward: PackedForward) -> SlotCache:
    assert isinstance(forward.store, SlotCache)
    return forward.store


def beside_a_longer_neighbour(forward: PackedForward) -> torch.Tensor:
    """Logits of a short sequence in slot 0, which reads as many keys as the neighbour in slot 1 has."""
    short, long = sequence(0, [5, 6, 7, 8]), sequence(1, list(range(10, 90)))
    forward.logits(Batch((), (Chunk(short, 0, 3), Chunk(long, 0, 79))))
    return forward.logits(Batch((Chunk(short, 3, 1), Chunk(long, 79, 1)), ()))[0]


@pytest.mark.parametrize("most", [1, 0], ids=["given up", "only its prompt was wanted"])
def test_a_poisoned_prompt_that_nobody_looked_at_is_gone(forward: PackedForward, most: int) -> None:
    clean = beside_a_longer_neighbour(forward)
    for slot in (0, 1):
        forward.release(slot)
    poisoned = sequence(0, [3] * 40 + [POISON] * 20, most)
    forward.logits(Batch((), (Chunk(poisoned, 0, 60 if most == 0 else 50),)))
    forward.release(0)
    assert torch.equal(beside_a_longer_neighbour(forward), clean)


def test_a_row_that_failed_is_gone(forward: PackedForward) -> None:
    clean = beside_a_longer_neighbour(forward)
    for slot in (0, 1):
        forward.release(slot)
    assert forward.logits(Batch((), (Chunk(sequence(0, [3] * 40 + [POISON]), 0, 41),))).isnan().all()
    forward.release(0, spoiled=True)
    assert torch.equal(beside_a_longer_neighbour(forward), clean)


def test_what_a_forward_left_half_done_is_gone(forward: PackedForward, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = beside_a_longer_neighbour(forward)
    for slot in (0, 1):
        forward.release(slot)
    network = forward._network

    def breaks(*told: torch.Tensor) -> torch.Tensor:
        network(*told)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(forward, "_network", breaks)
    with pytest.raises(RuntimeError):
        forward.logits(Batch((), (Chunk(sequence(0, [3] * 40 + [POISON]), 0, 41),)))
    monkeypatch.undo()
    forward.release(0)
    assert torch.equal(beside_a_longer_neighbour(forward), clean)


def test_only_a_prompt_that_was_given_up_costs_a_clearing(forward: PackedForward) -> None:
    def written(slot: int, place: int) -> bool:
        return bool(cache_of(forward).layers[0].keys[slot, :, place].any())

    tokens = list(range(3, 12))
    for start, end in ((0, 5), (5, 9)):
        forward.logits(Batch((), (Chunk(sequence(0, tokens), start, end - start),)))
    forward.logits(Batch((), (Chunk(sequence(1, tokens), 0, 5),)))
    forward.release(0)
    forward.release(1)
    # It may still be saved before the next step.
    assert written(1, 4)
    forward.logits(Batch((), (Chunk(sequence(0, tokens), 0, 5),)))
    assert written(0, 8)
    assert not written(1, 4)
