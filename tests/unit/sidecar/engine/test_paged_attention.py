"""Attention over paged blocks: flash-attention is asked for what PyTorch computes, and all is on one device."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sidecar.engine import attention
from sidecar.engine.attention import Projected, Scoring, install
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.packed import PackedForward, StockNetwork
from sidecar.engine.paged_attention import FLASH_BLOCK_TOKENS, PagedContext, PagedRun, gather
from sidecar.engine.paged_cache import PagedCache, PagedLayer
from sidecar.engine.prefix_cache import Pair
from sidecar.engine.sequence import Sequence
from sidecar.engine.sight import FULL, Sight
from sidecar.wire.frames import Sampling, Submit

HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 6, 2, 16, 700


def sequence(slot: int, tokens: int) -> Sequence:
    prompt = [3 + n % 90 for n in range(tokens)]
    return Sequence(Submit(str(slot), 0, prompt, 1, Sampling(), []), slot, record=slot, slot=slot)


class Flash:
    """`flash_attn_with_kvcache`, by what its documentation says: token by token. Mutable: `calls`."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *,
        cache_seqlens: torch.Tensor,
        block_table: torch.Tensor,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int],
        softcap: float,
    ) -> torch.Tensor:
        assert causal
        assert cache_seqlens.dtype == block_table.dtype == torch.int32
        self.calls += 1
        out = torch.empty_like(q)
        sequences, tokens, heads, _ = q.shape
        for at in range(sequences):
            seen = int(cache_seqlens[at])
            keys, values = (pool[block_table[at].long()].flatten(0, 1)[:seen].float() for pool in (k_cache, v_cache))
            for token in range(tokens):
                # Aligned at the end: the last query sees the last key.
                place = seen - tokens + token
                left = 0 if window_size[0] < 0 else max(0, place - window_size[0])
                for head in range(heads):
                    own = head // (heads // keys.shape[1])
                    scores = keys[left : place + 1, own] @ q[at, token, head].float() * softmax_scale
                    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                    out[at, token, head] = scores.softmax(-1) @ values[left : place + 1, own]
        return out


@pytest.mark.parametrize("sight", [FULL, Sight(window=40), Sight(chunk=64)], ids=["full", "window", "chunks"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_flash_attention_is_asked_for_what_is_computed_without(sight: Sight, softcap: float | None) -> None:
    torch.manual_seed(1)
    scoring = Scoring(1 / math.sqrt(HEAD_DIM), softcap)
    flash = Flash()
    contexts = [PagedContext(PagedCache(3, CONTEXT, "cpu", FLASH_BLOCK_TOKENS), kernel) for kernel in (None, flash)]
    first, second = sequence(0, 300), sequence(2, 90)
    batches = (
        Batch((), (Chunk(first, 0, 270), Chunk(second, 0, 80))),
        Batch((), (Chunk(first, 270, 29), Chunk(second, 80, 9))),
        Batch((Chunk(first, 299, 1), Chunk(second, 89, 1)), ()),
    )
    for batch in batches:
        tokens = sum(chunk.count for chunk in batch.chunks)
        given = [torch.randn(tokens, heads, HEAD_DIM).to(torch.float16) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        positions = torch.tensor([at for chunk in batch.chunks for at in range(chunk.start, chunk.end)])
        found: list[torch.Tensor] = []
        for context in contexts:
            context.cache.touch({chunk.sequence.slot: chunk.end for chunk in batch.chunks})
            context.begin(batch, positions)
            found.append(context.attend(0, Projected(*given), scoring, sight))
        assert torch.allclose(*found, atol=4e-3)
    # Chunks are not among what it computes.
    assert flash.calls == (0 if sight.chunk else 5)


def test_a_reader_is_asked_for_whatever_flash_attention_does_not_compute() -> None:
    asked: list[tuple[int, ...]] = []

    def reader(layer: PagedLayer, run: PagedRun, queries: torch.Tensor, scoring: Scoring, sight: Sight) -> torch.Tensor:
        asked.append(tuple(queries.shape))
        return gather(layer, run, queries, scoring, sight)

    flash = Flash()
    context = PagedContext(PagedCache(3, CONTEXT, "cpu", FLASH_BLOCK_TOKENS), flash, reader)
    batch = Batch((), (Chunk(sequence(0, 20), 0, 19),))
    context.cache.touch({0: 19})
    context.begin(batch, torch.arange(19))
    given = Projected(*(torch.randn(19, heads, HEAD_DIM).to(torch.float16) for heads in (HEADS, KV_HEADS, KV_HEADS)))
    found = [context.attend(layer, given, Scoring(0.25), sight) for layer, sight in enumerate((FULL, Sight(chunk=64)))]
    assert (flash.calls, asked) == (1, [(1, 19, HEADS, HEAD_DIM)])
    assert torch.allclose(*found, atol=4e-3)


def test_a_step_is_computed_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # On PyTorch's device for shapes alone, whatever is left on the CPU is refused as it would be on a GPU.
    told = LlamaConfig(
        vocab_size=128, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=8, max_position_embeddings=192,
    )  # fmt: skip
    model = LlamaForCausalLM(told).eval().to("meta")
    # Masks are read off their numbers, and there are none.
    sights = {module: FULL for module in model.modules() if hasattr(module, "layer_idx")}
    monkeypatch.setattr(attention, "learn", lambda *_: sights)
    cache = PagedCache(4, 192, "meta")
    context = PagedContext(cache)
    install(model, context, 192)
    forward = PackedForward(StockNetwork(model), context, cache, cache.device)
    first, second = sequence(0, 80), sequence(1, 20)
    forward.logits(Batch((), (Chunk(first, 0, 79), Chunk(second, 0, 19))))
    forward.keep(500)
    forward.store.reserve(2)
    for batch in (
        Batch((), (Chunk(first, 0, 79), Chunk(second, 0, 19))),
        Batch((Chunk(first, 79, 1), Chunk(second, 19, 1)), ()),
    ):
        logits = forward.logits(batch)
        assert logits.device.type == "meta"
    assert logits.shape == (2, 128)
    forward.release(0, spoiled=True)
    with torch.inference_mode():
        forward.store.save(0, (Pair(0, 1),))
        forward.store.load(2, (Pair(0, 1),))
