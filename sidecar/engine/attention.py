"""Attention over the slot cache, put into unmodified Transformers models through their attention interface.

The forward is packed: one row of tokens `[1, T]`, decodes first (a token each, in order of slots), then prompt chunks.
Decodes in neighbouring slots are one call on a view of the cache; grouped query heads are read as query positions, so
keys and values are never copied. What attention is told of a step comes from `StepContext`, not from kwargs.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.kv_cache import LayerCache, SlotCache, places

NAME: Final = "tollhouse_slots"
# What one more attention call costs, in tokens read for one sequence: 40 µs at 10 GB/s and 1.5 kB a token, measured
# with SmolLM2 on 2 cores. Only the cut between calls depends on it, no result does.
_CALL_COST_TOKENS: Final = 256
# Arguments that change the result and are not computed here; a model that needs one must not run on this tier.
_REFUSED: Final = ("softcap", "s_aux", "head_mask", "position_bias")


class UnsupportedAttentionError(Exception):
    """The model's attention needs something that this tier does not compute."""


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Rows `[row, row + count)` of the batch, in slots `[slot, slot + count)`; `lengths`: their tokens in the cache."""

    row: int
    slot: int
    lengths: tuple[int, ...]
    _masks: dict[tuple[int | None, int], torch.Tensor | None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def mask(self, window: int | None, kv_heads: int, dtype: torch.dtype) -> torch.Tensor | None:
        """`[count × kv_heads, 1, longest]`, 0 where a key is seen and -inf where not; None if every key is."""
        kind = (window, kv_heads)
        if kind not in self._masks:
            shortest = min(self.lengths)
            whole = shortest == self.longest and (window is None or self.longest <= window)
            mask = None if whole else self._build(window, dtype).repeat_interleave(kv_heads, 0)[:, None]
            self._masks[kind] = mask
        return self._masks[kind]

    def _build(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        lengths = torch.tensor(self.lengths)[:, None]
        positions = torch.arange(self.longest)[None, :]
        seen = positions < lengths
        if window is not None:
            seen &= positions >= lengths - window
        return _additive(seen, dtype)


@dataclass(frozen=True, slots=True)
class PrefillRun:
    """Rows `[row, row + count)` of the batch: tokens `start` to `start + count` of the sequence in `slot`."""

    row: int
    slot: int
    start: int
    count: int
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + self.count

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """`[1, 1, count, end]`; None where plain causal attention from the first token on is meant."""
        if window not in self._masks:
            plain = self.start == 0 and (window is None or self.count <= window)
            self._masks[window] = None if plain else self._build(window, dtype)
        return self._masks[window]

    def _build(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        queries = torch.arange(self.start, self.end)[:, None]
        keys = torch.arange(self.end)[None, :]
        seen = keys <= queries
        if window is not None:
            seen &= keys > queries - window
        return _additive(seen, dtype)[None, None]


@dataclass(slots=True)
class StepContext:
    """What attention needs to know of the step under way. Mutable: all but `cache` is replaced for each step.

    `_slots` and `_positions` say where each token's key and value go, `_places` the same by the number of heads.
    """

    cache: SlotCache
    _slots: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _places: dict[int, torch.Tensor] = field(default_factory=dict)
    decodes: tuple[DecodeRun, ...] = ()
    prefills: tuple[PrefillRun, ...] = ()

    def begin(self, batch: Batch, positions: torch.Tensor) -> None:
        """Start a step. `positions`: int64 `[T]`, of each token in its sequence."""
        slots: list[int] = []
        for chunk in batch.chunks:
            slots += [chunk.sequence.slot] * chunk.count
        self._slots = torch.tensor(slots)
        self._positions = positions
        self._places = {}
        self.decodes = tuple(decode_runs(batch.decodes))
        runs: list[PrefillRun] = []
        row = len(batch.decodes)
        for chunk in batch.prefills:
            runs.append(PrefillRun(row, chunk.sequence.slot, chunk.start, chunk.count))
            row += chunk.count
        self.prefills = tuple(runs)

    @property
    def single(self) -> bool:
        """Whether the step is one decode run and nothing else."""
        return len(self.decodes) == 1 and not self.prefills

    def places(self, kv_heads: int) -> torch.Tensor:
        """See `kv_cache.places`; all layers of a model have as many heads, as a rule."""
        if kv_heads not in self._places:
            self._places[kv_heads] = places(self._slots, self._positions, kv_heads, self.cache.context)
        return self._places[kv_heads]


def decode_runs(decodes: tuple[Chunk, ...]) -> list[DecodeRun]:
    """Cut decodes, in order of slots, into runs of neighbouring slots, where one call costs less than two."""
    runs: list[DecodeRun] = []
    lengths: list[int] = []
    first = 0
    for row, chunk in enumerate(decodes):
        if lengths:
            longest = max(lengths)
            apart = len(lengths) * longest + chunk.end + _CALL_COST_TOKENS
            together = (len(lengths) + 1) * max(longest, chunk.end)
            neighbours = chunk.sequence.slot == decodes[row - 1].sequence.slot + 1
            if not neighbours or together > apart:
                runs.append(DecodeRun(first, decodes[first].sequence.slot, tuple(lengths)))
                lengths, first = [], row
        lengths.append(chunk.end)
    if lengths:
        runs.append(DecodeRun(first, decodes[first].sequence.slot, tuple(lengths)))
    return runs


def install(model: PreTrainedModel, context: StepContext) -> None:
    """Make every attention layer of `model` use the cache of `context`.

    Raises UnsupportedAttentionError if the model does not go through the attention interface.
    """
    # Transformers' registry is global, and what we put there holds no state: a layer's context hangs on the layer.
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedAttentionError(f"{type(model).__name__} does not use Transformers' attention interface")
    model.set_attn_implementation(NAME)
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.step_context = context


def attend(  # noqa: PLR0917  # the signature is Transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  # ours is in the context
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention, as Transformers calls it.

    `query` is `[1, heads, T, head_dim]`, `key` and `value` are `[1, kv_heads, T, head_dim]`. Gives
    `[1, T, heads, head_dim]`. Raises UnsupportedAttentionError for an argument in `_REFUSED`.
    """
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise UnsupportedAttentionError(f"the model's attention uses {name!r}")
    told: Any = module
    rows, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_rows(told.step_context, told.layer_idx, rows, keys, values, scaling, sliding_window)[None], None


def attend_rows(  # noqa: PLR0917  # called once a layer and step
    context: StepContext,
    layer_idx: int,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Store keys and values, `[T, kv_heads, head_dim]`, and give what the queries see, `[T, heads, head_dim]`."""
    layer = context.cache.layer(layer_idx, keys, values)
    layer.write(context.places(layer.kv_heads), keys, values)
    if context.single:
        run = context.decodes[0]
        return _decode(layer, run, rows, run.mask(sliding_window, layer.kv_heads, rows.dtype), scaling)
    out = rows.new_empty(rows.shape[0], rows.shape[1], values.shape[-1])
    for run in context.decodes:
        at = slice(run.row, run.row + run.count)
        out[at] = _decode(layer, run, rows[at], run.mask(sliding_window, layer.kv_heads, rows.dtype), scaling)
    for chunk in context.prefills:
        at = slice(chunk.row, chunk.row + chunk.count)
        out[at] = _prefill(layer, chunk, rows[at], chunk.mask(sliding_window, rows.dtype), scaling)
    return out


def _decode(
    layer: LayerCache, run: DecodeRun, rows: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """`rows` `[count, heads, head_dim]`; the heads that share a key head stand in for query positions.

    Written out as two products: PyTorch's fused kernel is made for many queries, and with few it is up to twice slower.
    """
    slots = slice(run.slot, run.slot + run.count)
    keys = layer.keys[slots].flatten(0, 1)[:, : run.longest]
    values = layer.values[slots].flatten(0, 1)[:, : run.longest]
    queries = rows.reshape(keys.shape[0], -1, rows.shape[-1])
    scale = rows.shape[-1] ** -0.5 if scaling is None else scaling
    # Without a mask something must stand in its place; with beta=0 it is not read.
    added, beta = (queries[:1, :1, :1], 0) if mask is None else (mask, 1)
    scores = torch.baddbmm(added, queries, keys.transpose(1, 2), beta=beta, alpha=scale)
    return torch.bmm(scores.softmax(-1), values).view(run.count, rows.shape[1], -1)


def _prefill(
    layer: LayerCache, chunk: PrefillRun, rows: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    keys = layer.keys[chunk.slot, :, : chunk.end][None]
    values = layer.values[chunk.slot, :, : chunk.end][None]
    out = scaled_dot_product_attention(
        rows.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _no_mask(*_: object, **__: object) -> None:
    """Transformers' mask function: masks are the context's."""
