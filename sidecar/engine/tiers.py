"""Chooses how a model is executed: the fastest way that proves itself against `generate`, stepping down on failure.

| tier | attention | batch |
|---|---|---|
| packed | ours, over our KV cache | all tokens of a step in one row |
| rows | the model's own, over Transformers' cache | sequences that decode are rows, prompts alone |
| sequential | the model's own | every sequence alone |
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import nn
from transformers import PreTrainedModel

from sidecar.engine import attention, parity, slot_attention
from sidecar.engine.fused_model import FusedModel, fuse
from sidecar.engine.graphs import CudaRecorder, GraphedNetwork, Recorder
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.model_runner import Forward
from sidecar.engine.norms import use_native_norms
from sidecar.engine.packed import PackedForward, StockNetwork
from sidecar.engine.paged_attention import FLASH_BLOCK_TOKENS, PagedContext, PagedKernel, Reader, flash_kernel
from sidecar.engine.paged_cache import PagedCache
from sidecar.engine.prefix_cache import BLOCK_TOKENS
from sidecar.engine.rows import RowsForward
from sidecar.engine.sequential import SequentialForward

NAMES: Final = ("packed", "rows", "sequential")


class NoTierError(Exception):
    """Not even the slowest way computes what `generate` computes; the message has a line for each that was tried."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A proven way to run a model.

    `network` holds the weights it uses, to be packed; `parity` is the largest difference found; `chunks`: whether
    prompts may be cut; `steps_down` says why no faster way was taken, a line each.
    """

    name: str
    forward: Forward
    network: nn.Module
    parity: float
    fused: bool
    chunks: bool
    steps_down: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Built:
    """A tier that is yet to be proven. `changed`: the model is not what it was, and serves no other tier any more."""

    forward: Forward
    network: nn.Module
    chunks: bool = True
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """How a model may be run: a tier, what is special about it, and what makes it of a stock model.

    `build` raises UnsupportedAttentionError before it changes anything. `refines`: if the way before was the stock
    model's layers already, this one is no other.
    """

    tier: str
    how: str
    build: Callable[[PreTrainedModel], Built]
    refines: bool = False


def choose(
    read: Callable[[], PreTrainedModel],
    ways: Iterable[Way],
    wanted: list[parity.Reference],
    *,
    tolerance: float = parity.TOLERANCE,
) -> Tier:
    """The first of the ways that gives what is wanted. Raises NoTierError.

    `read` gives the stock model, and keeps no hold of it: one that a tier has changed is let go before the next comes.
    """
    steps_down: list[str] = []
    stock: PreTrainedModel | None = None
    fused = False
    for way in ways:
        if way.refines and not fused:
            continue
        stock = stock or read()
        built: Built | None = None
        try:
            built = way.build(stock)
            fused = isinstance(built.network, FusedModel)
            worst = parity.check(built.forward, wanted, tolerance, chunks=built.chunks)
        except Exception as exc:  # noqa: BLE001  # a model's code may raise anything; the next way may be right
            steps_down.append(f"{way.tier} with {way.how}: {type(exc).__name__}: {exc}")
        else:
            return Tier(way.tier, built.forward, built.network, worst, fused, built.chunks, tuple(steps_down))
        if built is not None and built.changed:
            stock = None
    raise NoTierError("; ".join(steps_down))


def ways(slots: int, context: int, fastest: str = "auto", device: str = "cpu", tolerance: float = 0.0) -> list[Way]:
    """All ways in order of speed, from a tier on, for `slots` sequences of up to `context` tokens.

    `tolerance` is for what runs on a GPU as a graph: how much a log-probability may differ from that without.
    """
    packed = ways_over_slots(slots, context)
    if device != "cpu":
        packed = ways_over_blocks(
            slots,
            context,
            device,
            kernel=flash_kernel(),
            reader=tile_reader(),
            recorder=CudaRecorder(),
            tolerance=tolerance,
        )
    found = [
        *packed,
        Way("rows", "prompts in chunks", lambda model: Built(RowsForward(model), model)),
        Way("rows", "whole prompts", lambda model: Built(RowsForward(model, chunks=False), model, chunks=False)),
        Way("sequential", "prompts in chunks", lambda model: Built(SequentialForward(model), model)),
        Way(
            "sequential",
            "whole prompts",
            lambda model: Built(SequentialForward(model, chunks=False), model, chunks=False),
        ),
        Way(
            "sequential",
            "no cache",
            lambda model: Built(SequentialForward(model, chunks=False, cached=False), model, chunks=False),
        ),
    ]
    first = 0 if fastest == "auto" else NAMES.index(fastest)
    return [way for way in found if NAMES.index(way.tier) >= first]


def ways_over_slots(slots: int, context: int) -> list[Way]:
    """For a CPU: our attention and, where the model looks as expected, our layers."""

    def build(model: PreTrainedModel, *, fuses: bool) -> Built:
        cache = SlotCache(slots, slot_attention.rounded(context, BLOCK_TOKENS))
        told = slot_attention.SlotContext(cache)
        attention.install(model, told, context)
        use_native_norms(model)
        network = (fuse(model, told) if fuses else None) or StockNetwork(model)
        return Built(PackedForward(network, told, cache), network, changed=True)

    return [
        Way("packed", "our attention", partial(build, fuses=True)),
        Way("packed", "the model's own layers", partial(build, fuses=False), refines=True),
    ]


def ways_over_blocks(
    slots: int,
    context: int,
    device: str,
    *,
    kernel: PagedKernel | None,
    reader: Reader | None = None,
    recorder: Recorder | None,
    tolerance: float,
) -> list[Way]:
    """For a GPU: attention over paged blocks, and decodes as graphs.

    By flash-attention's `kernel` and by a `reader`, where there are such.
    """

    def build(model: PreTrainedModel, kernel: PagedKernel | None, reader: Reader | None) -> Built:
        cache = PagedCache(slots, context, device, BLOCK_TOKENS if kernel is None else FLASH_BLOCK_TOKENS)
        told = PagedContext(cache, kernel, reader)
        attention.install(model, told, context)
        use_native_norms(model)
        network: nn.Module = StockNetwork(model)
        if recorder is not None:
            network = GraphedNetwork(network, told, recorder, tolerance)
        return Built(PackedForward(network, told, cache, cache.device), network, changed=True)

    made = [Way("packed", "paged blocks", partial(build, kernel=None, reader=None))]
    if reader is not None:
        made.insert(0, Way("packed", "tiles over paged blocks", partial(build, kernel=None, reader=reader)))
    if kernel is not None:
        # Its blocks are too large for our tiles.
        flash = partial(build, kernel=kernel, reader=None)
        made.insert(0, Way("packed", "flash-attention over paged blocks", flash))
    return made


def tile_reader() -> Reader | None:
    """Our kernel, where Triton is."""
    if importlib.util.find_spec("triton") is None:
        return None
    kernels: Any = importlib.import_module("sidecar.engine.paged_tiles")
    reader: Reader = kernels.tiles()
    return reader
