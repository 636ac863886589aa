"""Attention over slots is attention over each sequence alone, and runs are cut where that is cheaper."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sidecar.engine.attention import StepContext, UnsupportedAttentionError, attend, decode_runs
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit

HEADS, KV_HEADS, HEAD_DIM, CONTEXT, SLOTS = 4, 2, 8, 64, 5


def sequence(slot: int, tokens: int) -> Sequence:
    made = Sequence(Submit(str(slot), 0, [0] * tokens, 1, Sampling(), []), arrival=slot, record=slot)
    made.slot = slot
    return made


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    """Causal attention of one whole sequence, `[heads, tokens, head_dim]`, by the formula."""
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / HEAD_DIM**0.5
    tokens = scores.shape[-1]
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


class Bench:
    """One attention layer, the whole keys and values of some sequences, and what attention gave for each token."""

    def __init__(self, lengths: list[int], window: int | None = None) -> None:
        torch.manual_seed(0)
        self.context = StepContext(SlotCache(SLOTS, CONTEXT))
        self.module = nn.Module()
        self.module.layer_idx = 0  # type: ignore[assignment]  # as Transformers' layers have it
        self.module.step_context = self.context  # type: ignore[assignment]  # as install() sets it
        self.window = window
        self.sequences = [sequence(slot, length) for slot, length in enumerate(lengths)]
        self.qkv = [
            [torch.randn(heads, length, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)] for length in lengths
        ]
        self.given = [torch.full((HEADS, length, HEAD_DIM), torch.nan) for length in lengths]

    def step(self, chunks: list[tuple[int, int, int]]) -> None:
        """Run chunks (sequence, start, count)."""
        made = [Chunk(self.sequences[n], start, count) for n, start, count in chunks]
        batch = Batch(tuple(c for c in made if c.count == 1), tuple(c for c in made if c.count > 1))
        positions = [position for chunk in batch.chunks for position in range(chunk.start, chunk.end)]
        self.context.begin(batch, torch.tensor(positions))
        parts = [
            torch.cat([self.qkv[c.sequence.slot][which][:, c.start : c.end] for c in batch.chunks], 1)[None]
            for which in range(3)
        ]
        out, _ = attend(self.module, *parts, None, scaling=HEAD_DIM**-0.5, sliding_window=self.window)
        row = 0
        for chunk in batch.chunks:
            self.given[chunk.sequence.slot][:, chunk.start : chunk.end] = out[0, row : row + chunk.count].transpose(
                0, 1
            )
            row += chunk.count

    def check(self) -> None:
        for (query, key, value), given_out in zip(self.qkv, self.given, strict=True):
            assert torch.allclose(given_out, naive(query, key, value, self.window), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_chunks_and_decodes_together_are_each_sequence_alone(window: int | None) -> None:
    bench = Bench([9, 7, 12], window)
    bench.step([(0, 0, 8)])
    bench.step([(0, 8, 1), (1, 0, 5)])
    bench.step([(1, 5, 1), (2, 0, 4)])
    bench.step([(1, 6, 1), (2, 4, 7)])
    bench.step([(2, 11, 1)])
    bench.check()


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
    bench.given[0] = torch.full((HEADS, 6, HEAD_DIM), torch.nan)
    bench.step([(0, 0, 5)])
    bench.step([(0, 5, 1)])
    bench.check()


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
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


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 30), st.integers(1, 3000), max_size=20))
def test_runs_cover_every_row_once_in_order(rows: dict[int, int]) -> None:
    chunks = decodes(sorted(rows.items()))
    covered: list[Any] = []
    for run in decode_runs(chunks):
        assert run.row == len(covered)
        covered += [(run.slot + n, length) for n, length in enumerate(run.lengths)]
    assert covered == sorted(rows.items())


def test_a_mask_is_left_out_where_every_key_is_seen() -> None:
    (run,) = decode_runs(decodes([(0, 5), (1, 5)]))
    assert run.mask(None, 2, torch.float32) is None
    assert run.mask(5, 2, torch.float32) is None
    narrow = run.mask(4, 2, torch.float32)
    assert narrow is not None
    assert narrow.shape == (4, 1, 5)
    assert narrow[0, 0].tolist() == [float("-inf"), 0, 0, 0, 0]
