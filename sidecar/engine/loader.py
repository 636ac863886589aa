"""From a folder of safetensors to a model that runs on the slot cache in the chosen precision, proven on the way."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sidecar.engine import attention, linears, parity
from sidecar.engine.config import EngineConfig
from sidecar.engine.fused_model import FusedModel, fuse
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.memory import available_bytes
from sidecar.engine.model_runner import ModelRunner
from sidecar.engine.norms import use_native_norms
from sidecar.engine.packed import PackedForward, StockNetwork
from sidecar.wire.frames import Ready

TIER: Final = "packed"
# The share of free memory, after the weights, that the KV cache may grow into.
KV_MEMORY_SHARE: Final = 0.5
_HASHED_ENDS_BYTES: Final = 1 << 20


class ModelUnusableError(Exception):
    """The folder's model cannot be served; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run.

    `capacity_tokens`: what the KV cache may hold; `parity`: the largest difference found; `fused`: whether its layers
    are ours.
    """

    runner: ModelRunner
    max_context: int
    capacity_tokens: int
    vocab_size: int
    weights_bytes: int
    fingerprint: str
    parity: float
    fused: bool
    seconds: dict[str, float]


def load(config: EngineConfig) -> Loaded:
    """Raises ModelUnusableError."""
    seconds: dict[str, float] = {}
    folder = Path(config.model_path)
    try:
        prepared = _prepare(config, seconds, fused=True)
    except (attention.UnsupportedAttentionError, parity.ParityError):
        # Perhaps only the fused layers are not right for it: with its own ones it has the last word.
        try:
            prepared = _prepare(config, seconds, fused=False)
        except (attention.UnsupportedAttentionError, parity.ParityError) as exc:
            raise ModelUnusableError(f"{folder}: this model cannot run on tier {TIER!r}: {exc}") from exc
    forward = prepared.forward
    worst = prepared.parity
    try:
        with _timed(seconds, "pack"):
            weights_bytes = linears.pack(prepared.network, config.precision)
        with _timed(seconds, "warm"):
            tolerance = float("inf") if config.precision == "int8" else parity.TOLERANCE
            packed = parity.check(forward, prepared.wanted, tolerance)
    except parity.ParityError as exc:
        raise ModelUnusableError(f"{folder}: the packed weights do not compute the same: {exc}") from exc
    capacity = config.kv_tokens or int(available_bytes() * KV_MEMORY_SHARE) // forward.bytes_per_token
    capacity = min(capacity, config.max_sequences * prepared.context)
    forward.capacity_tokens = capacity
    return Loaded(
        runner=ModelRunner(forward),
        max_context=min(prepared.context, capacity),
        capacity_tokens=capacity,
        vocab_size=prepared.vocab_size,
        weights_bytes=weights_bytes,
        fingerprint=fingerprint(folder, config.precision),
        parity=worst if config.precision == "int8" else max(worst, packed),
        fused=prepared.fused,
        seconds=seconds,
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A model that computes the right thing with its weights as they came."""

    network: nn.Module
    forward: PackedForward
    wanted: list[parity.Reference]
    context: int
    parity: float
    vocab_size: int
    fused: bool


def _prepare(config: EngineConfig, seconds: dict[str, float], *, fused: bool) -> _Prepared:
    """Read the model and prove it, with fused layers where they seem right or with its own ones alone.

    Raises ModelUnusableError, UnsupportedAttentionError or ParityError.
    """
    with _timed(seconds, "read"):
        model = _read(Path(config.model_path))
    with _timed(seconds, "reference"):
        wanted = parity.references(model)
    text_config = model.config.get_text_config()
    vocabulary = int(text_config.vocab_size)
    context = _context(config, int(getattr(text_config, "max_position_embeddings", 1 << 20)))
    step = attention.StepContext(SlotCache(config.max_sequences, attention.rounded(context)))
    attention.install(model, step)
    use_native_norms(model)
    network = (fuse(model, step) if fused else None) or StockNetwork(model)
    forward = PackedForward(network, step)
    with _timed(seconds, "parity"):
        worst = parity.check(forward, wanted)
    return _Prepared(network, forward, wanted, context, worst, vocabulary, isinstance(network, FusedModel))


def report(loaded: Loaded, config: EngineConfig) -> Ready:
    """What the front is told of a loaded model."""
    return Ready(
        tier=TIER,
        precision=config.precision,
        device=config.device,
        dtype="float32",
        max_context=loaded.max_context,
        max_sequences=config.max_sequences,
        vocab_size=loaded.vocab_size,
        weights_bytes=loaded.weights_bytes,
        fingerprint=loaded.fingerprint,
        load_seconds=loaded.seconds,
    )


def fingerprint(folder: Path, precision: str) -> str:
    """Tells one set of weights, precision and tier from another: sizes, and the first and last MiB of each weight file.

    The first MiB holds the safetensors header. Reading all of a large model would cost a start tens of seconds.
    """
    digest = hashlib.sha256(json.dumps([precision, TIER, torch.__version__]).encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_ENDS_BYTES))
            file.seek(max(0, size - _HASHED_ENDS_BYTES))
            digest.update(file.read())
    return f"fp_{digest.hexdigest()[:16]}"


def _read(folder: Path) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            # The reference of the parity probe: the plainest there is, and every model has it.
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as exc:
        raise ModelUnusableError(f"{folder}: Transformers cannot load this model: {exc}") from exc
    return model.eval().requires_grad_(requires_grad=False)


def _context(config: EngineConfig, models: int) -> int:
    if config.max_context is not None and config.max_context > models:
        raise ModelUnusableError(f"max_context is {config.max_context}, but the model has {models} positions")
    return config.max_context or models


@contextmanager
def _timed(into: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block took, in seconds."""
    started = time.perf_counter()
    try:
        yield
    finally:
        into[name] = round(time.perf_counter() - started, 3)
