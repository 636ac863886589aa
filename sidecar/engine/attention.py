"""Attention over the slot cache, put into unmodified Transformers models through their attention interface.

The forward is packed: one row of tokens `[1, T]`, decodes first (a token each, in order of slots), then prompt chunks.
Decodes in neighbouring slots are one call on a view of the cache; grouped query heads are read as query positions, so
keys and values are never copied. What attention is told of a step comes from `StepContext`, not from kwargs.

A row's answer does not depend on its neighbours, to the last bit, and so int8 does not round them differently: decodes
read a whole number of `READ` keys, prompts are computed in blocks of `BLOCK_TOKENS` that begin at multiples of it.
"""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.kv_cache import LayerCache, SlotCache, places
from sidecar.engine.prefix_cache import BLOCK_TOKENS
from sidecar.engine.sight import Sight, UnsupportedAttentionError, additive, learn

NAME: Final = "tollhouse_slots"
# With a whole number of so many keys a product with zeros at its end is the same as without them, in every bit.
READ: Final = 16
# What one more attention call costs, in tokens read for one sequence: 40 µs at 10 GB/s and 1.5 kB a token, measured
# with SmolLM2 on 2 cores. Only the cut between calls depends on it, no result does.
_CALL_COST_TOKENS: Final = 256
# Arguments that change the result and are not computed here; a model that needs one must not run on this tier.
_REFUSED: Final = ("head_mask", "position_bias")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How scores become weights: `scale` × the products, capped by `softcap × tanh(s / softcap)`, with `sinks`.

    Sinks, `[heads]`, are scores that take weight and give nothing (Xiao et al., arXiv 2309.17453; gpt-oss).
    """

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None


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
    _bags: dict[tuple[int, int], Bags] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.lengths)

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

    def bags(self, layer: LayerCache, heads: int) -> Bags:
        """Of all that is read, for so many query heads."""
        shape = layer.kv_heads, heads
        if shape not in self._bags:
            self._bags[shape] = bags(layer, self.slot, self.count, heads, self.longest)
        return self._bags[shape]


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
    _bags: dict[tuple[int, int], Bags] = field(default_factory=dict)

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

    def bags(self, layer: LayerCache, heads: int) -> Bags:
        """Of all that is read, for so many query heads."""
        shape = layer.kv_heads, heads
        if shape not in self._bags:
            self._bags[shape] = bags(layer, self.slot, 1, heads, self.longest)
        return self._bags[shape]


@dataclass(slots=True)
class StepContext:
    """What attention needs to know of the step under way. Mutable: all but `cache` is replaced for each step.

    `positions` are the tokens' in their sequences, `_slots` where they go, `_places` both by the number of heads.
    """

    cache: SlotCache
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _slots: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    _places: dict[int, torch.Tensor] = field(default_factory=dict)
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

    def attend(  # noqa: PLR0917  # called once a layer and step
        self,
        layer_idx: int,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scoring: Scoring,
        sight: Sight,
    ) -> torch.Tensor:
        """Store keys and values, `[T, kv_heads, head_dim]`, and give what the queries see, `[T, heads, head_dim]`."""
        layer = self.cache.layer(layer_idx, keys, values)
        layer.write(self.places(layer.kv_heads), keys, values)
        if (single := self.single) is not None:
            return _decode(layer, single, rows, scoring, sight)
        out = rows.new_empty(rows.shape[0], rows.shape[1], values.shape[-1])
        for run in self.decodes:
            at = slice(run.row, run.row + run.count)
            out[at] = _decode(layer, run, rows[at], scoring, sight)
        for block in self.prefills:
            at = slice(block.row, block.row + block.count)
            out[at] = _prefill(layer, block, rows[at], scoring, sight)
        return out


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


class Context(Protocol):
    """What attention is told of the step under way, and where its keys and values are; see `StepContext`.

    `positions`: int64 `[T]`, of each token of the step in its sequence.
    """

    @property
    def positions(self) -> torch.Tensor: ...
    def begin(self, batch: Batch, positions: torch.Tensor) -> None: ...
    def attend(  # noqa: PLR0917  # called once a layer and step
        self,
        layer_idx: int,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scoring: Scoring,
        sight: Sight,
    ) -> torch.Tensor: ...


def install(model: PreTrainedModel, context: Context, tokens: int) -> None:
    """Make every attention layer of `model` use the cache of `context`, for sequences of up to `tokens` tokens.

    Raises UnsupportedAttentionError if the model does not go through the attention interface, or sees other tokens than
    a `Sight` can say. The model is then as it was.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedAttentionError(f"{type(model).__name__} does not use Transformers' attention interface")
    sights = learn(model, tokens)
    # Transformers' registry is global, and what we put there holds no state: a layer's context hangs on the layer.
    # No mask function is registered beside it, so Transformers makes no masks.
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    for module, sight in sights.items():
        attention: Any = module
        attention.step_context = context
        attention.step_sight = sight
        attention.step_temperature = _take_temperature(module)


def _take_temperature(module: Any) -> tuple[float, float] | None:
    """Llama 4 scales queries by their position, which it takes from the row: switched off there, done in `attend`."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return None
    module.attn_temperature_tuning = False
    return float(module.floor_scale), float(module.attn_scale)


def attend(  # noqa: PLR0917  # the signature is Transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  # none is made
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention, as Transformers calls it.

    `query` is `[1, heads, T, head_dim]`, `key` and `value` are `[1, kv_heads, T, head_dim]`; the values' head_dim may
    be another. Gives `[1, T, heads, head_dim]`. Raises UnsupportedAttentionError for an argument in `_REFUSED`.
    """
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise UnsupportedAttentionError(f"the model's attention uses {name!r}")
    told: Any = module
    rows, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    if told.step_temperature is not None:
        rows = rows * _temperatures(told.step_context.positions, *told.step_temperature)[:, None, None]
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    seen: torch.Tensor = told.step_context.attend(told.layer_idx, rows, keys, values, scoring, told.step_sight)
    return seen[None], None


def _temperatures(positions: torch.Tensor, floor_scale: float, attn_scale: float) -> torch.Tensor:
    """What Llama 4 multiplies the queries of its layers without rotary embedding by (arXiv 2501.19399)."""
    return torch.log1p(torch.floor((positions.float() + 1) / floor_scale)) * attn_scale + 1


def _decode(layer: LayerCache, run: DecodeRun, rows: torch.Tensor, scoring: Scoring, sight: Sight) -> torch.Tensor:
    """`rows` `[count, heads, head_dim]`; the heads that share a key head stand in for query positions.

    Written out as two products: PyTorch's fused kernel is made for many queries, and with few it is up to twice slower.
    """
    keys = layer.keys[run.slot : run.slot + run.count].flatten(0, 1)[:, : run.longest]
    queries = rows.reshape(keys.shape[0], -1, rows.shape[-1])
    mask = run.mask(sight, layer.kv_heads, rows.dtype)
    weights = weights_of(queries, keys, mask, scoring, layer.kv_heads)
    return weighted(weights, layer.values, run.bags(layer, rows.shape[1])).view(run.count, rows.shape[1], -1)


def _prefill(layer: LayerCache, run: PrefillRun, rows: torch.Tensor, scoring: Scoring, sight: Sight) -> torch.Tensor:
    """`rows` `[count, heads, head_dim]` of one sequence."""
    keys, values = layer.keys[run.slot, :, : run.longest], layer.values[run.slot, :, : run.longest]
    mask = run.mask(sight, rows.dtype)
    if run.drafted:
        each = [_weights_of_one(keys, row, mask[at : at + 1], scoring) for at, row in enumerate(rows)]
        own = run.bags(layer, rows.shape[1])
        return torch.stack([weighted(one, layer.values, own) for one in each])
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


def _weights_of_one(keys: torch.Tensor, row: torch.Tensor, mask: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Of one query, `[heads, head_dim]`, as `_decode` computes them; `mask` is `[1, longest]`."""
    queries = row.reshape(keys.shape[0], -1, row.shape[-1])
    return weights_of(queries, keys, mask, scoring, keys.shape[0])


def bags(layer: LayerCache, slot: int, count: int, heads: int, longest: int) -> Bags:
    """The first `longest` values that each query head of neighbouring slots reads."""
    _, kv_heads, context, _ = layer.values.shape
    first = torch.arange(slot * kv_heads, (slot + count) * kv_heads) * context
    at = first.repeat_interleave(heads // kv_heads)[:, None] + torch.arange(longest)
    return Bags(at.flatten(), torch.arange(0, at.numel(), longest))


def weighted(weights: torch.Tensor, values: torch.Tensor, own: Bags) -> torch.Tensor:
    """The sums of `values` `[slots, kv_heads, context, head_dim]` by `weights` `[n, rows, seen]`.

    Gives `[n × rows, head_dim]`, a row for each of the bags. PyTorch has a kernel of FBGEMM's for this: each value is
    read where it is, in order, so that nothing depends on a neighbour; with few rows a batched product takes twice as
    long.
    """
    rows = values.view(-1, values.shape[-1])
    # A sum, without gradients: F.embedding_bag says the same, and takes as long again to say it.
    return torch.embedding_bag(rows, own.at, own.starts, False, 0, False, weights.flatten())[0]


def weights_of(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scoring: Scoring, kv_heads: int
) -> torch.Tensor:
    """`queries` `[n, rows, head_dim]`, `keys` `[n, seen, head_dim]`, `mask` broadcast to `[n, rows, seen]`.

    `n` counts key heads, of one sequence after the other; `rows` the query heads of each, each with as many tokens.
    """
    if scoring.plain:
        return torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scoring.scale).softmax(-1)
    scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scoring.scale)
    if scoring.softcap is not None:
        scores = scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    scores += mask
    if scoring.sinks is None:
        return scores.softmax(-1)
    sinks = scoring.sinks.to(scores.dtype).view(kv_heads, -1).repeat(scores.shape[0] // kv_heads, 1)
    sinks = sinks.repeat_interleave(scores.shape[1] // sinks.shape[1], 1)[..., None]
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
