"""Attention over paged blocks in one kernel, read where they lie: for a GPU, in Triton, which comes with PyTorch.

Imported only where Triton is. A program takes a tile of queries, those of one key head, and a part of the blocks;
parts are put together by their masses. Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

from typing import Final

import torch
import triton  # type: ignore[import-not-found,unused-ignore]  # it comes with builds of PyTorch for GPUs
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]  # as above

from sidecar.engine.attention import Scoring
from sidecar.engine.paged_attention import PagedRun
from sidecar.engine.paged_cache import PagedLayer
from sidecar.engine.sight import Sight

# The matrix units take no fewer rows.
_SMALL_TILE: Final = 16
_LARGE_TILE: Final = 64
# A part is worth its own program from so many blocks on.
_LEAST_BLOCKS: Final = 4
# Programs that keep a GPU busy, for each of its multiprocessors.
_PROGRAMS: Final = 2
# Bytes of a row of keys from which on two stages of them, or a large tile, do not fit a multiprocessor's memory.
_WIDE_ROW_BYTES: Final = 512
_WIDEST_ROW_BYTES: Final = 1024


class PagedTiles:
    """See `paged_attention.Reader`. Mutable: `_compiled`, what the kernels are compiled for.

    The kernel is compiled for a tile's size and for whether it computes parts: all of them when a kind of layer first
    comes, or the first long text would wait for it.
    """

    def __init__(self, multiprocessors: int) -> None:
        self._busy = _PROGRAMS * multiprocessors
        self._compiled: set[tuple[object, ...]] = set()

    def __call__(
        self, layer: PagedLayer, run: PagedRun, queries: torch.Tensor, scoring: Scoring, sight: Sight
    ) -> torch.Tensor:
        large = _SMALL_TILE if queries.shape[3] * queries.element_size() >= _WIDEST_ROW_BYTES else _LARGE_TILE
        kind = (sight, scoring.softcap is None, queries.dtype, queries.shape[2:], layer.values.shape[-1])
        if kind not in self._compiled:
            for rows in (_SMALL_TILE, large):
                for parts in (1, 2):
                    _launch(layer, run, queries, scoring, sight, rows, parts)
            self._compiled.add(kind)
        sequences, tokens, heads, _ = queries.shape
        rows = large if tokens * (heads // layer.kv_heads) > _SMALL_TILE else _SMALL_TILE
        programs = sequences * -(-tokens * heads // (layer.kv_heads * rows)) * layer.kv_heads
        parts = max(1, min(-(-self._busy // programs), -(-run.tables.shape[1] // _LEAST_BLOCKS)))
        return _launch(layer, run, queries, scoring, sight, rows, parts)


def tiles() -> PagedTiles:
    """For the GPU at hand."""
    return PagedTiles(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def _launch(  # noqa: PLR0917  # what a kernel needs
    layer: PagedLayer, run: PagedRun, queries: torch.Tensor, scoring: Scoring, sight: Sight, rows: int, parts: int
) -> torch.Tensor:
    """`[sequences, tokens, heads, values' head_dim]`."""
    sequences, tokens, heads, key_dim = queries.shape
    if queries.stride(3) != 1:
        queries = queries.contiguous()
    value_dim = layer.values.shape[-1]
    group = heads // layer.kv_heads
    whole = parts == 1 and scoring.sinks is None
    out = queries.new_empty(
        (sequences, tokens, heads, parts, value_dim), dtype=queries.dtype if whole else torch.float32
    )
    masses = out.new_empty((sequences, tokens, heads, parts), dtype=torch.float32)
    wide = key_dim * queries.element_size() >= _WIDE_ROW_BYTES
    _attend[sequences * triton.cdiv(tokens * group, rows), layer.kv_heads, parts](
        queries, layer.keys, layer.values, run.tables, run.lengths, run.positions, out, masses,
        scoring.scale, scoring.softcap or 1.0,
        *queries.stride()[:3], *layer.keys.stride()[:3], *layer.values.stride()[:3], run.tables.stride(0),
        tokens, heads, parts, -(-run.tables.shape[1] // parts),
        GROUP=group, ROWS=rows, BLOCK=layer.keys.shape[1], KEY=key_dim, VALUE=value_dim,
        KEY_PADDED=max(16, triton.next_power_of_2(key_dim)), VALUE_PADDED=max(16, triton.next_power_of_2(value_dim)),
        WINDOW=sight.window or 0, CHUNK=sight.chunk or 0, CAPPED=scoring.softcap is not None, WHOLE=whole,
        num_warps=4, num_stages=1 if wide else 2,
    )  # fmt: skip
    if whole:
        return out[:, :, :, 0]
    total = masses.logsumexp(-1)
    if scoring.sinks is not None:
        total = torch.logaddexp(total, scoring.sinks.float())
    return (out * (masses - total[..., None]).exp_()[..., None]).sum(3).to(queries.dtype)


# Triton reads the annotations of a kernel's arguments as its own.
@triton.jit(  # type: ignore[untyped-decorator,unused-ignore]  # Triton has not typed it
    do_not_specialize=["table_row", "tokens", "heads", "parts", "blocks"],
    # Those of a prompt begin anywhere in a step.
    do_not_specialize_on_alignment=["positions"],
)
def _attend(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917  # as above; and it has the arguments that it needs
    queries, keys, values, tables, lengths, positions, out, masses,  # noqa: ANN001
    scale, softcap,  # noqa: ANN001
    q_sequence, q_token, q_head, k_block, k_token, k_head, v_block, v_token, v_head, table_row,  # noqa: ANN001
    tokens, heads, parts, blocks,  # noqa: ANN001
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,  # noqa: N803
    KEY_PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,  # noqa: N803
    CAPPED: tl.constexpr, WHOLE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One tile of one sequence, for one key head, over part number `program_id(2)` of `blocks` blocks.

    Gives what it sees (`out`, `[sequences, tokens, heads, parts, VALUE]`) and, unless WHOLE, the logarithm of the
    weights' sum (`masses`).
    """
    tiles = tl.cdiv(tokens * GROUP, ROWS)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    real = row < tokens * GROUP
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    along = tl.arange(0, KEY_PADDED)
    across = tl.arange(0, VALUE_PADDED)
    inside = tl.arange(0, BLOCK)
    length = tl.load(lengths + sequence)
    position = tl.load(positions + sequence * tokens + token, mask=real, other=0).to(tl.int32)
    query = tl.load(
        queries + sequence * q_sequence + token[:, None] * q_token + head[:, None] * q_head + along[None, :],
        mask=real[:, None] & (along[None, :] < KEY),
        other=0.0,
    )
    start = part * blocks
    end = tl.minimum(start + blocks, tl.cdiv(tl.minimum(length, tl.max(position, 0) + 1), BLOCK))
    earliest = tl.min(tl.where(real, position, length), 0)
    if WINDOW:
        start = tl.maximum(start, tl.maximum(earliest - WINDOW + 1, 0) // BLOCK)
    if CHUNK:
        start = tl.maximum(start, earliest // CHUNK * CHUNK // BLOCK)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    seen = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
    for number in range(start, end):
        block = tl.load(tables + sequence * table_row + number).to(tl.int64)
        place = number * BLOCK + inside
        key = tl.load(
            keys + block * k_block + inside[None, :] * k_token + kv_head * k_head + along[:, None],
            mask=(place[None, :] < length) & (along[:, None] < KEY),
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="tf32x3") * scale
        if CAPPED:
            # A hyperbolic tangent.
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        shown = place[None, :] <= position[:, None]
        if WINDOW:
            shown = shown & (place[None, :] > position[:, None] - WINDOW)
        if CHUNK:
            shown = shown & (place[None, :] // CHUNK == position[:, None] // CHUNK)
        score = tl.where(shown, score, float("-inf"))
        now = tl.maximum(highest, tl.max(score, 1))
        # A row that has seen nothing yet.
        base = tl.where(now == float("-inf"), 0.0, now)
        weight = tl.exp(score - base[:, None])
        kept = tl.exp(highest - base)
        value = tl.load(
            values + block * v_block + inside[:, None] * v_token + kv_head * v_head + across[None, :],
            mask=(place[:, None] < length) & (across[None, :] < VALUE),
            other=0.0,
        )
        mass = mass * kept + tl.sum(weight, 1)
        seen = seen * kept[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="tf32x3")
        highest = now
    seen = seen / tl.where(mass == 0.0, 1.0, mass)[:, None]
    to = ((sequence * tokens + token) * heads + head) * parts + part
    tl.store(
        out + to[:, None] * VALUE + across[None, :],
        seen.to(out.dtype.element_ty),
        mask=real[:, None] & (across[None, :] < VALUE),
    )
    if not WHOLE:
        tl.store(masses + to, highest + tl.log(mass), mask=real)
