"""Puts an engine together: what runs a step, what decides it, what the front is told. One for each kind of model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from sidecar.engine import embedder, loader
from sidecar.engine.config import EngineConfig
from sidecar.engine.core import Runner
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Ready

UNUSABLE: Final = (loader.ModelUnusableError, embedder.EncoderUnusableError)


@dataclass(frozen=True, slots=True)
class Engine:
    """Ready to run; `network` is what the runner computes with.

    `parity` is the largest difference from the stock model; `fused`: whether the layers are ours.
    """

    runner: Runner
    network: nn.Module
    scheduler: Scheduler
    ready: Ready
    parity: float
    fused: bool = False


def generator(config: EngineConfig, begins: Callable[[str], None] = lambda _: None) -> Engine:
    """`begins` is told of each phase of the load. Raises one of UNUSABLE."""
    try:
        return _generator(config, begins)
    except torch.OutOfMemoryError as exc:
        raise loader.ModelUnusableError(
            f"{config.model_path}: the GPU's memory does not hold this model and its KV cache: set engine.kv_tokens, "
            f"engine.prefix_cache_tokens or model.max_context lower, or take another precision: {exc}"
        ) from exc


def _generator(config: EngineConfig, begins: Callable[[str], None]) -> Engine:
    loaded = loader.load(config, begins)
    kept = prefix_tokens(config, loaded.capacity_tokens)
    prefixes = loaded.runner.keep_prefixes(kept)
    scheduler = Scheduler(
        SlotPool(config.max_sequences, loaded.capacity_tokens, loaded.runner.forward.release),
        config.step_token_budget,
        # The other tiers compute one token of a sequence at a time.
        speculation=config.speculation if loaded.tier.name == "packed" else 0,
        chunks=loaded.tier.chunks,
        prefixes=prefixes,
    )
    return Engine(
        loaded.runner,
        loaded.tier.network,
        scheduler,
        loader.report(loaded, config, loaded.capacity_tokens + (0 if prefixes is None else kept)),
        loaded.parity,
        loaded.tier.fused,
    )


def encoder(config: EngineConfig) -> Engine:
    """Raises one of UNUSABLE."""
    loaded = embedder.load(config)
    # Nothing is kept from step to step, so every sequence may be as long as the model allows.
    pool = SlotPool(config.max_sequences, config.max_sequences * (loaded.max_context + 1))
    scheduler = Scheduler(pool, config.step_token_budget, chunks=False)
    return Engine(loaded.runner, loaded.runner.model, scheduler, embedder.report(loaded, config), loaded.parity)


def prefix_tokens(config: EngineConfig, capacity_tokens: int) -> int:
    """How much the prefix cache may hold, beside what the running sequences may."""
    return capacity_tokens // 4 if config.prefix_tokens is None else config.prefix_tokens
