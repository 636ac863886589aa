"""Attention over the slot cache, on a CPU: the counterpart of `paged_attention`.

The forward is packed: one row of tokens `[1, T]`, decodes first (a token each, in order of slots), then prompt chunks.
Decodes in neighbouring slots are one call on a view of the cache; grouped query heads are read as query positions, so
keys and values are never copied.

A row's answer does not depend on its neighbours, to the last bit, and so int8 does not round them differently: decodes
read a whole number of `READ` keys, prompts are computed in blocks of `BLOCK_TOKENS` that begin at multiples of it.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from sidecar.engine.attention import Projected, Scoring, weights_of
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.kv_cache import LayerCache, SlotCache, places
from sidecar.engine.prefix_cache import BLOCK_TOKENS
from sidecar.engine.sight import Sight, additive

# With a whole number of so many keys a product with zeros at its end is the same as without them, in every bit.
READ: Final = 16
# What one more attention call costs, in tokens read for one sequence: 40 µs at 10 GB/s and 1.5 kB a token, measured
# with SmolLM2 on 2 cores. Only the cut between calls depends on it, no result does.
_CALL_COST_TOKENS: Final = 256


class Bags(NamedTuple):
    """The values that queries read, as `torch.embedding_bag` takes them; a bag for each query head.

    `at` are rows of a layer's values, counted through slots, heads and places, a bag after the other; `starts`, where
    in `at` each begins. Both are int64.
    """

    at: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Rows `[row, row + count)` of the batch, in slots `[slot, slot + count)`; `lengths`: their tokens in the cache.

    `longest` keys of each slot are read.
    """

    row: int
    slot: int
    lengths: tuple[int, ...]
    _masks: dict[tuple[Sight, int], torch.Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def sequences(self) -> int:
        return self.count

    @property
    def longest(self) -> int:
        return rounded(max(self.lengths))

    def mask(self, sight: Sight, kv_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """`[count × kv_heads, 1, longest]`, 0 where a key is seen and -inf where not."""
        found = self._masks.get((sight, kv_heads))
        if found is None:
            queries = torch.tensor(self.lengths)[:, None] - 1
            seen = sight.seen(queries, torch.arange(self.longest)[None])
            found = additive(seen, dtype).repeat_interleave(kv_heads, 0)[:, None]
            self._masks[sight, kv_heads] = found
        return found


@dataclass(frozen=True, slots=True)
class PrefillRun:
    """Rows `[row, row + count)` of the batch: tokens `start` to `start + count` of the sequence in `slot`.

    They are of one block of `BLOCK_TOKENS`, and attend as if all of it was there: wherever a prompt is cut, the
    products have the same shapes. `drafted` ones are computed as if each was decoded alone.
    """

    row: int
    slot: int
    start: int
    count: int
    drafted: bool = False
    _masks: dict[Sight, torch.Tensor] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        return 1

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def block(self) -> int:
        """Where its block begins."""
        return self.start // BLOCK_TOKENS * BLOCK_TOKENS

    @property
    def longest(self) -> int:
        """How many keys are read."""
        return rounded(self.end) if self.drafted else self.block + BLOCK_TOKENS

    def mask(self, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
        """`[count, longest]`, of a block `[BLOCK_TOKENS, longest]`; 0 where a key is seen and -inf where not."""
        found = self._masks.get(sight)
        if found is None:
            first, end = (self.start, self.end) if self.drafted else (self.block, self.block + BLOCK_TOKENS)
            queries = torch.arange(first, end)[:, None]
            found = self._masks[sight] = additive(sight.seen(queries, torch.arange(self.longest)[None]), dtype)
        return found


@dataclass(slots=True)
class SlotContext:
    """See `attention.Context`. Mutable: all but `cache` is replaced for each step.

    `positions` are the tokens' in their sequences, `_slots` where they go, `_places` both by the number of heads;
    `_bags` are those asked for so far, by run and number of heads.
    """

    cache: SlotCache
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _slots: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _places: dict[int, torch.Tensor] = field(default_factory=dict)
    _bags: dict[tuple[int, int, int, int], Bags] = field(default_factory=dict)
    decodes: tuple[DecodeRun, ...] = ()
    prefills: tuple[PrefillRun, ...] = ()

    def begin(self, batch: Batch, positions: torch.Tensor) -> None:
        """Start a step. `positions`: int64 `[T]`, of each token in its sequence."""
        slots: list[int] = []
        for chunk in batch.chunks:
            slots += [chunk.sequence.slot] * chunk.count
        self._slots = torch.tensor(slots)
        self.positions = positions
        self._places = {}
        self._bags = {}
        self.decodes = tuple(decode_runs(batch.decodes))
        runs: list[PrefillRun] = []
        row = len(batch.decodes)
        for chunk in batch.prefills:
            runs += blocks(chunk, row)
            row += chunk.count
        self.prefills = tuple(runs)

    @property
    def single(self) -> DecodeRun | None:
        """The step's decode run, if it is one and nothing else."""
        return self.decodes[0] if len(self.decodes) == 1 and not self.prefills else None

    @property
    def guess(self) -> PrefillRun | None:
        """The step's one decode with a draft, if it is that and nothing else."""
        return self.prefills[0] if len(self.prefills) == 1 and not self.decodes and self.prefills[0].drafted else None

    def places(self, kv_heads: int) -> torch.Tensor:
        """See `kv_cache.places`; all layers of a model have as many heads, as a rule."""
        if kv_heads not in self._places:
            self._places[kv_heads] = places(self._slots, self.positions, kv_heads, self.cache.context)
        return self._places[kv_heads]

    def bags(self, layer: LayerCache, run: DecodeRun | PrefillRun, heads: int) -> Bags:
        """The values that each query head reads in a run: all of its `longest`."""
        key = run.row, run.longest, layer.kv_heads, heads
        found = self._bags.get(key)
        if found is None:
            found = self._bags[key] = _bags(layer, run, heads)
        return found

    def attend(self, layer_idx: int, given: Projected, scoring: Scoring, sight: Sight) -> torch.Tensor:
        """See `attention.Context`."""
        rows, keys, values = given
        layer = self.cache.layer(layer_idx, keys, values)
        layer.write(self.places(layer.kv_heads), keys, values)
        if (single := self.single) is not None:
            return self._decode(layer, single, rows, scoring, sight)
        out = rows.new_empty(rows.shape[0], rows.shape[1], values.shape[-1])
        for run in self.decodes:
            at = slice(run.row, run.row + run.count)
            out[at] = self._decode(layer, run, rows[at], scoring, sight)
        for block in self.prefills:
            at = slice(block.row, block.row + block.count)
            prefill = self._draft if block.drafted else _prefill
            out[at] = prefill(layer, block, rows[at], scoring, sight)
        return out

    def _decode(
        self, layer: LayerCache, run: DecodeRun, rows: torch.Tensor, scoring: Scoring, sight: Sight
    ) -> torch.Tensor:
        """`rows` `[count, heads, head_dim]`; the heads that share a key head stand in for query positions.

        Written out as two products: PyTorch's fused kernel is made for many queries, and up to twice slower with few.
        """
        keys = layer.keys[run.slot : run.slot + run.count].flatten(0, 1)[:, : run.longest]
        queries = rows.reshape(keys.shape[0], -1, rows.shape[-1])
        mask = run.mask(sight, layer.kv_heads, rows.dtype)
        weights = weights_of(queries, keys, mask, scoring, layer.kv_heads)
        return weighted(weights, layer.values, self.bags(layer, run, rows.shape[1])).view(run.count, rows.shape[1], -1)

    def _draft(
        self, layer: LayerCache, run: PrefillRun, rows: torch.Tensor, scoring: Scoring, sight: Sight
    ) -> torch.Tensor:
        """`rows` `[count, heads, head_dim]` of one sequence, each as `_decode` computes it."""
        keys, mask = layer.keys[run.slot, :, : run.longest], run.mask(sight, rows.dtype)
        own = self.bags(layer, run, rows.shape[1])
        seen: list[torch.Tensor] = []
        for at, row in enumerate(rows):
            queries = row.reshape(layer.kv_heads, -1, row.shape[-1])
            weights = weights_of(queries, keys, mask[at : at + 1], scoring, layer.kv_heads)
            seen.append(weighted(weights, layer.values, own))
        return torch.stack(seen)


def rounded(tokens: int, to: int = READ) -> int:
    """Up to a multiple."""
    return -(-tokens // to) * to


def blocks(chunk: Chunk, row: int) -> list[PrefillRun]:
    """A chunk, cut where blocks end; one with a draft stays whole. `row` is the chunk's first."""
    if chunk.draft:
        return [PrefillRun(row, chunk.sequence.slot, chunk.start, chunk.count, drafted=True)]
    runs: list[PrefillRun] = []
    start = chunk.start
    while start < chunk.end:
        end = min(chunk.end, (start // BLOCK_TOKENS + 1) * BLOCK_TOKENS)
        runs.append(PrefillRun(row + start - chunk.start, chunk.sequence.slot, start, end - start))
        start = end
    return runs


def decode_runs(decodes: tuple[Chunk, ...]) -> list[DecodeRun]:
    """Cut decodes, in order of slots, into runs of neighbouring slots, where one call costs less than two."""
    runs: list[DecodeRun] = []
    lengths: list[int] = []
    first = 0
    for row, chunk in enumerate(decodes):
        if lengths:
            together = max(*lengths, chunk.end) * (len(lengths) + 1)
            apart = max(lengths) * len(lengths) + chunk.end + _CALL_COST_TOKENS
            neighbours = chunk.sequence.slot == decodes[row - 1].sequence.slot + 1
            if not neighbours or together > apart:
                runs.append(DecodeRun(first, decodes[first].sequence.slot, tuple(lengths)))
                lengths, first = [], row
        lengths.append(chunk.end)
    if lengths:
        runs.append(DecodeRun(first, decodes[first].sequence.slot, tuple(lengths)))
    return runs


def _prefill(layer: LayerCache, run: PrefillRun, rows: torch.Tensor, scoring: Scoring, sight: Sight) -> torch.Tensor:
    """`rows` `[count, heads, head_dim]` of one sequence, all of one block."""
    keys, values = layer.keys[run.slot, :, : run.longest], layer.values[run.slot, :, : run.longest]
    mask = run.mask(sight, rows.dtype)
    at = slice(run.start - run.block, run.end - run.block)
    if run.count < BLOCK_TOKENS:
        rows = pad(rows, (0, 0, 0, 0, at.start, BLOCK_TOKENS - at.stop))
    if scoring.plain:
        out = scaled_dot_product_attention(
            rows.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=scoring.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)[at]
    # The query heads of a key head side by side: `[kv_heads, group × BLOCK_TOKENS, head_dim]`.
    group = rows.shape[1] // layer.kv_heads
    queries = rows.transpose(0, 1).reshape(layer.kv_heads, -1, rows.shape[-1])
    weights = weights_of(queries, keys, mask.repeat(group, 1)[None], scoring, layer.kv_heads)
    return torch.bmm(weights, values).view(rows.shape[1], BLOCK_TOKENS, -1).transpose(0, 1)[at]


def _bags(layer: LayerCache, run: DecodeRun | PrefillRun, heads: int) -> Bags:
    _, kv_heads, context, _ = layer.values.shape
    first = torch.arange(run.slot * kv_heads, (run.slot + run.sequences) * kv_heads) * context
    at = first.repeat_interleave(heads // kv_heads)[:, None] + torch.arange(run.longest)
    return Bags(at.flatten(), torch.arange(0, at.numel(), run.longest))


def weighted(weights: torch.Tensor, values: torch.Tensor, own: Bags) -> torch.Tensor:
    """The sums of `values` `[slots, kv_heads, context, head_dim]` by `weights` `[n, rows, seen]`.

    Gives `[n × rows, head_dim]`, a row for each of the bags. PyTorch has a kernel of FBGEMM's for this: each value is
    read where it is, in order, so that nothing depends on a neighbour; with few rows a batched product takes twice as
    long.
    """
    rows = values.view(-1, values.shape[-1])
    # A sum, without gradients: F.embedding_bag says the same, and takes as long again to say it.
    return torch.embedding_bag(rows, own.at, own.starts, False, 0, False, weights.flatten())[0]
