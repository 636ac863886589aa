"""From a folder of safetensors to a model that runs on the slot cache in the chosen precision, proven on the way."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from sidecar.engine import linears, parity, precision, rotary, tiers, weights
from sidecar.engine.config import EngineConfig
from sidecar.engine.memory import available_bytes
from sidecar.engine.model_runner import ModelRunner
from sidecar.wire.frames import Ready

# What a model without positions of its own may be asked for.
_NO_POSITIONS: Final = 1 << 20
# The share of free memory, after the weights, that the KV cache may grow into.
KV_MEMORY_SHARE: Final = 0.5
# Below this share of weights in the precision that was asked for, it is said.
_LEAST_PACKED: Final = 0.5
_HASHED_ENDS_BYTES: Final = 1 << 20


class ModelUnusableError(Exception):
    """The folder's model cannot be served; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run.

    `capacity_tokens`: what the KV cache may hold; `parity`: the largest difference found; `notes`: what is not as the
    settings ask for it, beside the tier's `steps_down`.
    """

    runner: ModelRunner
    tier: tiers.Tier
    precision: str
    dtype: str
    notes: tuple[str, ...]
    max_context: int
    capacity_tokens: int
    vocab_size: int
    weights_bytes: int
    fingerprint: str
    parity: float
    seconds: dict[str, float]


class Phases(dict[str, float]):
    """How long each phase of a load took, in seconds. `begins` is told the name of each as it begins."""

    def __init__(self, begins: Callable[[str], None]) -> None:
        super().__init__()
        self.begins = begins


def load(config: EngineConfig, begins: Callable[[str], None] = lambda _: None) -> Loaded:
    """`begins` is told of each phase: read, reference, parity, pack, warm. Raises ModelUnusableError."""
    seconds = Phases(begins)
    folder = Path(config.model_path)
    if config.device != "cpu" and not torch.cuda.is_available():
        raise ModelUnusableError(
            f"engine.device is {config.device}, but this PyTorch ({torch.__version__}) finds no GPU: take cpu, or look "
            "whether nvidia-smi lists one and PyTorch is a CUDA build (TOLLHOUSE_TORCH=cuda)"
        )
    try:
        plan = precision.plan(config.precision, weights.look(config.device), weights.method(folder))
    except precision.PrecisionError as exc:
        raise ModelUnusableError(f"{folder}: {exc}") from exc
    source = _Source(config, plan, seconds)
    text_config = source.look().config.get_text_config()
    context = _context(config, text_config)
    with _timed(seconds, "reference"):
        wanted = parity.references(source.look(), folder)
    try:
        tier, weights_bytes, worst = _proven(source, context, wanted)
    except tiers.NoTierError as exc:
        raise ModelUnusableError(f"{folder}: this model gives wrong answers on every tier: {exc}") from exc
    capacity = config.kv_tokens or int(available_bytes(config.device) * KV_MEMORY_SHARE) // tier.forward.bytes_per_token
    capacity = min(capacity, config.max_sequences * context)
    tier.forward.keep(capacity)
    return Loaded(
        runner=ModelRunner(tier.forward),
        tier=tier,
        precision=plan.precision,
        dtype=plan.dtype,
        notes=plan.notes + _unpacked(tier, plan),
        max_context=min(context, capacity),
        capacity_tokens=capacity,
        vocab_size=int(text_config.vocab_size),
        weights_bytes=weights_bytes,
        fingerprint=fingerprint(folder, plan.precision, tier.name),
        parity=worst,
        seconds=dict(seconds),
    )


class _Source:
    """The stock model, as often as it is wanted. Mutable: `_kept`, one that was looked at and is not given away yet.

    `seconds` is told how long reading took.
    """

    def __init__(self, config: EngineConfig, plan: precision.Plan, seconds: Phases) -> None:
        self.config = config
        self.plan = plan
        self.seconds = seconds
        self._kept: PreTrainedModel | None = None

    def look(self) -> PreTrainedModel:
        """The model, to be left as it is. Raises ModelUnusableError."""
        if self._kept is None:
            with _timed(self.seconds, "read"):
                self._kept = self._read()
        return self._kept

    def take(self) -> PreTrainedModel:
        """The model, for good. Raises ModelUnusableError."""
        given = self.look()
        self._kept = None
        return given

    def _read(self) -> PreTrainedModel:
        folder = Path(self.config.model_path)
        try:
            made = weights.read(folder, self.plan, self.config.device)
            rotary.settle(made, _context(self.config, made.config.get_text_config()))
        except weights.UnreadableError as exc:
            raise ModelUnusableError(f"{folder}: {exc}") from exc
        except rotary.UnsteadyRotaryError as exc:
            raise ModelUnusableError(f"{folder}: choose a smaller max_context: {exc}") from exc
        return made


def _proven(source: _Source, context: int, wanted: list[parity.Reference]) -> tuple[tiers.Tier, int, float]:
    """The fastest tier that is right, packed if it takes that, the bytes of its weights, and the largest difference.

    Raises NoTierError and ModelUnusableError.
    """
    config, plan, seconds = source.config, source.plan, source.seconds

    def choose(fastest: str) -> tiers.Tier:
        tolerance = parity.TOLERANCES[plan.rounding]
        ways = tiers.ways(config.max_sequences, context, fastest, config.device, tolerance)
        with _timed(seconds, "parity"):
            return tiers.choose(source.take, ways, wanted, tolerance=tolerance)

    tier = choose(config.tier)
    try:
        return tier, *_pack(tier, plan, wanted, seconds)
    except Exception as exc:
        if plan.pack != "fp32":
            raise ModelUnusableError(
                f"{config.model_path}: precision {plan.precision} does not fit this model, take fp32: {exc}"
            ) from exc
        name, steps_down = tier.name, (*tier.steps_down, f"weights are not packed: {exc}")
    # As they came, the weights do compute the same; what was packed of them is let go first.
    del tier
    tier = replace(choose(name), steps_down=steps_down)
    return tier, linears.size(tier.network), tier.parity


def _unpacked(tier: tiers.Tier, plan: precision.Plan) -> tuple[str, ...]:
    """A line if less than half of the weights are in the precision they were to be packed in."""
    if plan.pack is None or plan.pack == "fp32":
        return ()
    share = linears.packed_share(tier.network, plan.pack)
    if share >= _LEAST_PACKED:
        return ()
    return (f"{share:.0%} of the weights are {plan.pack}, the others are not in linear layers and stay fp32",)


def _pack(tier: tiers.Tier, plan: precision.Plan, wanted: list[parity.Reference], seconds: Phases) -> tuple[int, float]:
    """Pack a proven tier's weights and prove it again; gives their bytes, and the largest difference of all.

    Fewer bits differ by more than a tolerance could say; their arithmetic is what the tests compare. Raises
    ParityError, and what a model's code raises where it wants a linear layer of its own.
    """
    if plan.pack is None:
        return linears.size(tier.network), tier.parity
    with _timed(seconds, "pack"):
        weights_bytes = linears.pack(tier.network, plan.pack, frugal=plan.frugal)
    with _timed(seconds, "warm"):
        exact = plan.pack == "fp32"
        tolerance = parity.TOLERANCES[plan.rounding] if exact else float("inf")
        worst = parity.check(tier.forward, wanted, tolerance, chunks=tier.chunks)
    return weights_bytes, max(tier.parity, worst) if exact else tier.parity


def report(loaded: Loaded, config: EngineConfig, kv_tokens: int) -> Ready:
    """What the front is told of a loaded model. `kv_tokens`: what its caches may hold together."""
    return Ready(
        tier=loaded.tier.name,
        precision=loaded.precision,
        device=config.device,
        dtype=loaded.dtype,
        max_context=loaded.max_context,
        max_sequences=config.max_sequences,
        vocab_size=loaded.vocab_size,
        weights_bytes=loaded.weights_bytes,
        fingerprint=loaded.fingerprint,
        load_seconds=loaded.seconds,
        steps_down=[*loaded.notes, *loaded.tier.steps_down],
        kv_bytes=kv_tokens * loaded.tier.forward.bytes_per_token,
    )


def fingerprint(folder: Path, precision: str, tier: str) -> str:
    """Tells one set of weights, precision and tier from another: sizes, and the first and last MiB of each weight file.

    The first MiB holds the safetensors header. Reading all of a large model would cost a start tens of seconds.
    """
    digest = hashlib.sha256(json.dumps([precision, tier, torch.__version__]).encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_ENDS_BYTES))
            file.seek(max(0, size - _HASHED_ENDS_BYTES))
            digest.update(file.read())
    return f"fp_{digest.hexdigest()[:16]}"


def _context(config: EngineConfig, text_config: PreTrainedConfig) -> int:
    """Tokens of prompt and answer; as many as leave the model's frequencies alone, unless more are asked for."""
    positions = int(getattr(text_config, "max_position_embeddings", _NO_POSITIONS))
    if config.max_context is not None and config.max_context > positions:
        raise ModelUnusableError(f"max_context is {config.max_context}, but the model has {positions} positions")
    return config.max_context or min(positions, rotary.steady_positions(text_config) or positions)


@contextmanager
def _timed(into: Phases, name: str) -> Iterator[None]:
    """Note how long a block took, in seconds."""
    into.begins(name)
    started = time.perf_counter()
    try:
        yield
    finally:
        into[name] = round(into.get(name, 0.0) + time.perf_counter() - started, 3)
