"""Chooses how a model is executed: the fastest way that proves itself against `generate`, stepping down on failure.

| tier | attention | batch |
|---|---|---|
| packed | ours, over our KV cache | all tokens of a step in one row |
| rows | the model's own, over Transformers' cache | sequences that decode are rows, prompts alone |
| sequential | the model's own | every sequence alone |
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from torch import nn
from transformers import PreTrainedModel

from sidecar.engine import attention, parity
from sidecar.engine.fused_model import FusedModel, fuse
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.model_runner import Forward
from sidecar.engine.norms import use_native_norms
from sidecar.engine.packed import PackedForward, StockNetwork
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


class Build(Protocol):
    """Makes a tier of a stock model. Raises UnsupportedAttentionError before it changes anything."""

    def __call__(self, model: PreTrainedModel, cache: SlotCache) -> Built: ...


def choose(
    read: Callable[[], PreTrainedModel],
    cache: Callable[[], SlotCache],
    wanted: list[parity.Reference],
    fastest: str = "auto",
    *,
    tolerance: float = parity.TOLERANCE,
) -> Tier:
    """The fastest tier, from `fastest` on, that gives what is wanted. Raises NoTierError.

    `read` gives the stock model, and keeps no hold of it: one that a tier has changed is let go before the next comes.
    """
    steps_down: list[str] = []
    stock: PreTrainedModel | None = None
    fused = False
    for name, way, build in _ways(fastest):
        if build is _packed and not fused:
            # What failed was the model with its own layers already.
            continue
        stock = stock or read()
        built: Built | None = None
        try:
            built = build(stock, cache())
            fused = isinstance(built.network, FusedModel)
            worst = parity.check(built.forward, wanted, tolerance, chunks=built.chunks)
        except Exception as exc:  # noqa: BLE001  # a model's code may raise anything; the next way may be right
            steps_down.append(f"{name} with {way}: {type(exc).__name__}: {exc}")
        else:
            return Tier(name, built.forward, built.network, worst, fused, built.chunks, tuple(steps_down))
        if built is not None and built.changed:
            stock = None
    raise NoTierError("; ".join(steps_down))


def _ways(fastest: str) -> Iterator[tuple[str, str, Build]]:
    """All ways in order of speed, from a tier on."""
    ways: tuple[tuple[str, str, Build], ...] = (
        ("packed", "our attention", _fused),
        ("packed", "the model's own layers", _packed),
        ("rows", "prompts in chunks", lambda model, _: Built(RowsForward(model), model)),
        ("rows", "whole prompts", lambda model, _: Built(RowsForward(model, chunks=False), model, chunks=False)),
        ("sequential", "prompts in chunks", lambda model, _: Built(SequentialForward(model), model)),
        (
            "sequential",
            "whole prompts",
            lambda model, _: Built(SequentialForward(model, chunks=False), model, chunks=False),
        ),
        (
            "sequential",
            "no cache",
            lambda model, _: Built(SequentialForward(model, chunks=False, cached=False), model, chunks=False),
        ),
    )
    first = 0 if fastest == "auto" else NAMES.index(fastest)
    return (way for way in ways if NAMES.index(way[0]) >= first)


def _fused(model: PreTrainedModel, cache: SlotCache) -> Built:
    """Our attention and, where the model looks as expected, our layers."""
    return _packed(model, cache, fuses=True)


def _packed(model: PreTrainedModel, cache: SlotCache, *, fuses: bool = False) -> Built:
    """Our attention, in the model's own layers unless it `fuses`."""
    context = attention.StepContext(cache)
    attention.install(model, context)
    use_native_norms(model)
    network = (fuse(model, context) if fuses else None) or StockNetwork(model)
    return Built(PackedForward(network, context), network, changed=True)
