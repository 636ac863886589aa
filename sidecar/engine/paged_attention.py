"""Attention over a pool of blocks, on a GPU: the counterpart of `slot_attention`.

All sequences that decode are one call, each prompt chunk is one. flash-attention's paged kernel, or ours in
`paged_tiles`, read the blocks where they are; without them they are gathered first, and PyTorch's own attention
computes.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from sidecar.engine.attention import Projected, Scoring, weights_of
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.paged_cache import NOBODYS, PagedCache, PagedLayer, places
from sidecar.engine.sight import Sight, additive

# What flash-attention 2 asks of a paged cache (its csrc/flash_attn/flash_api.cpp).
FLASH_BLOCK_TOKENS: Final = 256
_FLASH_DTYPES: Final = (torch.float16, torch.bfloat16)
_FLASH_HEAD_DIM: Final = 256


class PagedKernel(Protocol):
    """flash-attention's `flash_attn_with_kvcache`, as far as it is used here."""

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
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class PagedRun:
    """Sequences of which as many tokens each are computed: `count` rows of the step from `row` on.

    `positions`, int64 `[sequences, tokens]`, are those tokens' in their sequences; `lengths`, int32 `[sequences]`, how
    many tokens each has with them; `tables`, int32 `[sequences, blocks]`, where these are.
    """

    row: int
    positions: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor
    _seen: dict[tuple[Sight, int], torch.Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.positions.numel()

    def seen(self, sight: Sight, keys: int) -> torch.Tensor:
        """Bool `[sequences, 1, tokens, keys]`: whether a token sees a key."""
        found = self._seen.get((sight, keys))
        if found is None:
            others = torch.arange(keys, device=self.positions.device)
            found = self._seen[sight, keys] = sight.seen(self.positions[:, None, :, None], others)
        return found


class Reader(Protocol):
    """Computes what queries `[sequences, tokens, heads, head_dim]` of a run see: `[…, values' head_dim]`."""

    def __call__(
        self, layer: PagedLayer, run: PagedRun, queries: torch.Tensor, scoring: Scoring, sight: Sight
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class PagedStep:
    """What attention needs to know of a step: `positions` and `places` of its tokens, int64 `[T]`, and the calls."""

    positions: torch.Tensor
    places: torch.Tensor
    runs: tuple[PagedRun, ...]

    @property
    def decodes(self) -> PagedRun | None:
        """The one run, if all sequences decode, a token or several."""
        return self.runs[0] if len(self.runs) == 1 and self.runs[0].positions.shape[1] == 1 else None


class PagedContext:
    """See `attention.Context`. Mutable: `step`, replaced for each step."""

    def __init__(self, cache: PagedCache, kernel: PagedKernel | None = None, reader: Reader | None = None) -> None:
        """`kernel` for what it fits, `reader` for the rest; without one, blocks are gathered."""
        self.cache = cache
        self._reader = reader or gather
        self.step = PagedStep(torch.empty(0), torch.empty(0), ())
        self._kernel = kernel

    @property
    def positions(self) -> torch.Tensor:
        return self.step.positions

    def begin(self, batch: Batch, positions: torch.Tensor) -> None:
        """Start a step. `positions`: int64 `[T]`, of each token in its sequence."""
        where: list[int] = []
        for chunk in batch.chunks:
            where += places(self.cache.table(chunk.sequence.slot), chunk.start, chunk.end, self.cache.block_tokens)
        runs = tuple(self._runs(batch, positions))
        self.step = PagedStep(positions, torch.tensor(where, device=self.cache.device), runs)

    def _runs(self, batch: Batch, positions: torch.Tensor) -> Iterator[PagedRun]:
        # A guess sees those before it, like any token: computed beside the decodes, it is part of their graph.
        guesses = tuple(takewhile(lambda chunk: chunk.draft, batch.prefills))
        ends = {chunk: range(chunk.start + 1, chunk.end + 1) for chunk in batch.decodes + guesses}
        row = sum(map(len, ends.values()))
        if row:
            chunks = [chunk for chunk, each in ends.items() for _ in each]
            yield self._run(0, chunks, [end for each in ends.values() for end in each], positions[:row])
        for chunk in batch.prefills[len(guesses) :]:
            yield self._run(row, [chunk], [chunk.end], positions[row : row + chunk.count])
            row += chunk.count

    def _run(self, row: int, chunks: list[Chunk], ends: list[int], positions: torch.Tensor) -> PagedRun:
        """As many tokens of each of `chunks`, the last one before its end."""
        tables = [self.cache.table(chunk.sequence.slot) for chunk in chunks]
        width = max(map(len, tables))
        return PagedRun(
            row,
            positions.view(len(chunks), -1),
            torch.tensor(ends, dtype=torch.int32, device=self.cache.device),
            torch.tensor(
                [table + [NOBODYS] * (width - len(table)) for table in tables],
                dtype=torch.int32,
                device=self.cache.device,
            ),
        )

    def attend(self, layer_idx: int, given: Projected, scoring: Scoring, sight: Sight) -> torch.Tensor:
        """See `attention.Context`."""
        rows, keys, values = given
        layer = self.cache.layer(layer_idx, keys, values)
        layer.write(self.step.places, keys, values)
        out = rows.new_empty(rows.shape[0], rows.shape[1], values.shape[-1])
        for run in self.step.runs:
            at = slice(run.row, run.row + run.count)
            queries = rows[at].view(*run.positions.shape, *rows.shape[1:])
            if self._kernel is not None and _fits(layer, scoring, sight):
                seen = _flash(self._kernel, layer, run, queries, scoring=scoring, window=sight.window)
            else:
                seen = self._reader(layer, run, queries, scoring, sight)
            out[at] = seen.flatten(0, 1)
        return out


def flash_kernel() -> PagedKernel | None:
    """flash-attention's, if it is installed."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    flash: Any = importlib.import_module("flash_attn")
    kernel: PagedKernel = flash.flash_attn_with_kvcache
    return kernel


def _fits(layer: PagedLayer, scoring: Scoring, sight: Sight) -> bool:
    """Whether flash-attention computes this. What it computes is proven with the tier, as all else."""
    shape = layer.keys.shape
    return (
        layer.keys.dtype in _FLASH_DTYPES
        and shape == layer.values.shape
        and shape[1] % FLASH_BLOCK_TOKENS == 0
        and shape[-1] <= _FLASH_HEAD_DIM
        and scoring.sinks is None
        and sight.chunk is None
    )


def _flash(
    kernel: PagedKernel,
    layer: PagedLayer,
    run: PagedRun,
    queries: torch.Tensor,
    *,
    scoring: Scoring,
    window: int | None,
) -> torch.Tensor:
    """As a `Reader`, by flash-attention. A token sees those before it, the last one all of its sequence."""
    return kernel(
        queries,
        layer.keys,
        layer.values,
        cache_seqlens=run.lengths,
        block_table=run.tables,
        softmax_scale=scoring.scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=scoring.softcap or 0.0,
    )


def gather(layer: PagedLayer, run: PagedRun, queries: torch.Tensor, scoring: Scoring, sight: Sight) -> torch.Tensor:
    """See `Reader`. PyTorch's own attention, on copies of the blocks."""
    # Head by head: `[sequences, kv_heads, keys, head_dim]`.
    keys, values = (pool[run.tables].flatten(1, 2).transpose(1, 2) for pool in (layer.keys, layer.values))
    seen = run.seen(sight, keys.shape[2])
    by_head = queries.transpose(1, 2)
    if scoring.plain:
        grouped = by_head.shape[1] != keys.shape[1]
        out = scaled_dot_product_attention(
            by_head, keys, values, attn_mask=seen, scale=scoring.scale, enable_gqa=grouped
        )
        return out.transpose(1, 2)
    # The query heads of a key head side by side: `[sequences × kv_heads, group × tokens, head_dim]`.
    sequences, heads, tokens, head_dim = by_head.shape
    group = heads // layer.kv_heads
    mask = additive(seen, queries.dtype).expand(-1, layer.kv_heads, -1, -1).repeat(1, 1, group, 1).flatten(0, 1)
    side_by_side = by_head.reshape(sequences * layer.kv_heads, group * tokens, head_dim)
    weights = weights_of(side_by_side, keys.flatten(0, 1), mask, scoring, layer.kv_heads)
    return torch.bmm(weights, values.flatten(0, 1)).view(sequences, heads, tokens, -1).transpose(1, 2)
