"""Attention over slots is attention over each sequence alone, and runs are cut where that is cheaper."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidecar.engine.attention import attend
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.sequence import Sequence
from sidecar.engine.sight import FULL, Sight, UnsupportedAttentionError
from sidecar.engine.slot_attention import SlotContext, decode_runs
from sidecar.wire.frames import Sampling, Submit

HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM, CONTEXT, SLOTS = 4, 2, 32, 24, 192, 5
SINKS = torch.linspace(-1, 2, HEADS)


def sequence(slot: int, tokens: int) -> Sequence:
    made = Sequence(Submit(str(slot), 0, [0] * tokens, 1, Sampling(), []), arrival=slot, record=slot)
    made.slot = slot
    return made


@dataclass(frozen=True)
class Kind:
    """What a model's attention asks for."""

    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    temperature: tuple[float, float] | None = None


KINDS = {
    "plain": Kind(),
    "window 1": Kind(window=1),
    "window 3": Kind(window=3),
    "a window wider than all": Kind(window=200),
    "chunked": Kind(chunk=5),
    "soft cap": Kind(softcap=2.0),
    "sinks": Kind(sinks=SINKS),
    "all of it": Kind(window=7, softcap=3.0, sinks=SINKS),
    "temperature": Kind(temperature=(4.0, 0.3)),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Causal attention of one whole sequence, `[heads, tokens, head_dim]`, by the formula."""
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (key, value))
    tokens = query.shape[1]
    at = torch.arange(tokens)
    if kind.temperature is not None:
        floor, scale = kind.temperature
        query = query * (((at + 1) / floor).floor().log1p() * scale + 1)[None, :, None]
    scores = query @ key.transpose(-1, -2) / HEAD_DIM**0.5
    if kind.softcap is not None:
        scores = (scores / kind.softcap).tanh() * kind.softcap
    distance = at[:, None] - at[None, :]
    hidden = distance < 0
    if kind.window is not None:
        hidden |= distance >= kind.window
    if kind.chunk is not None:
        hidden |= at[:, None] // kind.chunk != at[None, :] // kind.chunk
    scores = scores.masked_fill(hidden, float("-inf"))
    if kind.sinks is not None:
        scores = torch.cat([scores, kind.sinks[:, None, None].expand(-1, tokens, 1)], -1)
    return scores.softmax(-1)[..., :tokens] @ value


class Bench:
    """One attention layer, the whole keys and values of some sequences, and what attention gave for each token."""

    def __init__(self, lengths: list[int], kind: Kind = KINDS["plain"]) -> None:
        torch.manual_seed(0)
        self.context = SlotContext(SlotCache(SLOTS, CONTEXT))
        module: Any = nn.Module()
        # As Transformers' layers have it, and as install() sets it.
        module.layer_idx = 0
        module.step_context, module.step_temperature = self.context, kind.temperature
        module.step_sight = Sight(kind.window, kind.chunk)
        self.module = module
        self.kind = kind
        self.sequences = [sequence(slot, length) for slot, length in enumerate(lengths)]
        shapes = ((HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, VALUE_DIM))
        self.qkv = [[torch.randn(heads, length, dim) for heads, dim in shapes] for length in lengths]
        self.given = [torch.full((HEADS, length, VALUE_DIM), torch.nan) for length in lengths]

    def step(self, chunks: list[tuple[int, int, int]], *, drafted: bool = False) -> None:
        """Run chunks (sequence, start, count); with `drafted` their tokens behind the first are guesses."""
        made = [
            Chunk(self.sequences[n], start, count, (0,) * (count - 1) if drafted else ()) for n, start, count in chunks
        ]
        batch = Batch(tuple(c for c in made if c.count == 1), tuple(c for c in made if c.count > 1))
        positions = [position for chunk in batch.chunks for position in range(chunk.start, chunk.end)]
        self.context.begin(batch, torch.tensor(positions))
        parts = [
            torch.cat([self.qkv[c.sequence.slot][which][:, c.start : c.end] for c in batch.chunks], 1)[None]
            for which in range(3)
        ]
        kind = self.kind
        out, _ = attend(self.module, *parts, None, HEAD_DIM**-0.5, softcap=kind.softcap, s_aux=kind.sinks)
        row = 0
        for chunk in batch.chunks:
            self.given[chunk.sequence.slot][:, chunk.start : chunk.end] = out[0, row : row + chunk.count].transpose(
                0, 1
            )
            row += chunk.count

    def check(self) -> None:
        for (query, key, value), given_out in zip(self.qkv, self.given, strict=True):
            assert torch.allclose(given_out, naive(query, key, value, self.kind), atol=1e-5)


@each_kind
def test_chunks_and_decodes_together_are_each_sequence_alone(kind: Kind) -> None:
    bench = Bench([9, 7, 12], kind)
    bench.step([(0, 0, 8)])
    bench.step([(0, 8, 1), (1, 0, 5)])
    bench.step([(1, 5, 1), (2, 0, 4)])
    bench.step([(1, 6, 1), (2, 4, 7)])
    bench.step([(2, 11, 1)])
    bench.check()


@each_kind
def test_a_prompt_of_several_blocks_is_cut_anywhere(kind: Kind) -> None:
    bench = Bench([150, 80], kind)
    bench.step([(0, 0, 100)])
    bench.step([(0, 100, 50), (1, 0, 64)])
    bench.step([(1, 64, 16)])
    bench.check()


@each_kind
def test_guessed_tokens_are_decoded_as_if_alone_to_the_last_bit(kind: Kind) -> None:
    alone, together = Bench([40], kind), Bench([40], kind)
    for bench in (alone, together):
        bench.step([(0, 0, 29)])
    for start in range(29, 40):
        alone.step([(0, start, 1)])
    together.step([(0, 29, 6)], drafted=True)
    together.step([(0, 35, 5)], drafted=True)
    together.check()
    assert torch.equal(alone.given[0], together.given[0])


@pytest.mark.parametrize("cut", [64, 50, 100])
@each_kind
def test_neighbours_do_not_change_a_bit(kind: Kind, cut: int) -> None:
    lengths = [70, 33, 131]
    alone, company = Bench(lengths, kind), Bench(lengths, kind)
    for n, length in enumerate(lengths):
        alone.step([(n, 0, length - 2)])
        alone.step([(n, length - 2, 1)])
        alone.step([(n, length - 1, 1)])
    # The long prompt comes in chunks, cut at a block or anywhere; all decode side by side.
    company.step([(0, 0, 68), (2, 0, cut)])
    company.step([(0, 68, 1), (1, 0, 31), (2, cut, 129 - cut)])
    company.step([(0, 69, 1), (1, 31, 1), (2, 129, 1)])
    company.step([(1, 32, 1), (2, 130, 1)])
    for one, other in zip(alone.given, company.given, strict=True):
        assert torch.equal(one, other)


def test_neighbouring_decodes_of_different_lengths_do_not_see_each_others_rest() -> None:
    bench = Bench([20, 4, 11])
    bench.step([(0, 0, 19), (1, 0, 3), (2, 0, 10)])
    bench.step([(0, 19, 1), (1, 3, 1), (2, 10, 1)])
    bench.check()


def test_what_an_ended_sequence_left_in_a_slot_is_not_seen() -> None:
    bench = Bench([30])
    bench.step([(0, 0, 30)])
    bench.sequences[0] = sequence(0, 6)
    bench.qkv[0] = [part[:, 12:18] for part in bench.qkv[0]]
    bench.given[0] = torch.full((HEADS, 6, VALUE_DIM), torch.nan)
    bench.step([(0, 0, 5)])
    bench.step([(0, 5, 1)])
    bench.check()


@pytest.mark.parametrize("name", ["head_mask", "position_bias"])
def test_an_argument_that_is_not_computed_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedAttentionError, match=name):
        attend(nn.Module(), torch.zeros(1), torch.zeros(1), torch.zeros(1), None, **{name: 50.0})  # type: ignore[arg-type]  # a name in a variable


def decodes(rows: list[tuple[int, int]]) -> tuple[Chunk, ...]:
    return tuple(Chunk(sequence(slot, length), length - 1, 1) for slot, length in rows)


def test_equal_neighbours_are_one_run_and_a_gap_ends_it() -> None:
    runs = decode_runs(decodes([(0, 30), (1, 31), (3, 30)]))
    assert [(run.row, run.slot, run.lengths) for run in runs] == [(0, 0, (30, 31)), (2, 3, (30,))]


def test_a_far_longer_neighbour_has_a_run_of_its_own() -> None:
    runs = decode_runs(decodes([(0, 30), (1, 30), (2, 4000), (3, 30)]))
    assert [run.lengths for run in runs] == [(30, 30), (4000,), (30,)]


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 3000), max_size=20))
def test_runs_cover_every_row_once_in_order(rows: dict[int, int]) -> None:
    chunks = decodes(sorted(rows.items()))
    covered: list[Any] = []
    for run in decode_runs(chunks):
        assert run.row == len(covered)
        covered += [(run.slot + n, length) for n, length in enumerate(run.lengths)]
    assert covered == sorted(rows.items())


def test_a_mask_hides_what_is_behind_the_end_and_before_the_window() -> None:
    (run,) = decode_runs(decodes([(0, 5), (1, 20)]))
    hidden = float("-inf")
    whole = run.mask(FULL, 2, torch.float32)
    assert whole.shape == (4, 1, 32)
    assert whole[0, 0].tolist() == [0] * 5 + [hidden] * 27
    narrow = run.mask(Sight(window=4), 2, torch.float32)
    assert narrow[0, 0].tolist() == [hidden] + [0] * 4 + [hidden] * 27
    assert narrow[3, 0].tolist() == [hidden] * 16 + [0] * 4 + [hidden] * 12
