"""Embeddings from an encoder model: the model, its pooling, and a runner that gives each prompt one vector.

The core, the scheduler and the usage slots are those of generation: a prompt comes as one whole chunk, and its vector
is its outcome. How token states become one vector is what the folder says in the files of sentence-transformers.
"""

import json
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, PreTrainedModel

from sidecar.engine import linears
from sidecar.engine.batch import Batch, Load, Save
from sidecar.engine.config import EngineConfig
from sidecar.engine.loader import fingerprint
from sidecar.engine.model_runner import Outcome, Sampled
from sidecar.wire.frames import Ready

# Batched and alone, in fp32: padding adds nothing but zeros, in another order.
TOLERANCE: Final = 1e-5
# No two numbers of vectors of length 1 are further apart: in int8 they may be anything that is a number.
_MOST_APART: Final = 2.0
_PROBE_LENGTHS: Final = (9, 3, 17)
# Padding beyond this share of a batch costs more than a second call.
_MOST_PADDING: Final = 1.5
# Their positions begin behind the padding's (`create_position_ids_from_input_ids` in Transformers).
_POSITIONS_BEHIND_PADDING: Final = frozenset(
    ("camembert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl")
)
# What Transformers and the models' own code raise for a folder that does not suit them.
_FOREIGN_ERRORS: Final = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError,
)  # fmt: skip

# The state of the first token, or the mean of all.
Pooling = Literal["cls", "mean"]


class EncoderUnusableError(Exception):
    """The folder's model gives no embeddings; the message says why."""


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """An encoder ready to run; `size` is the length of a vector, `parity` the largest difference found."""

    runner: "EmbeddingRunner"
    max_context: int
    vocab_size: int
    size: int
    weights_bytes: int
    parity: float
    seconds: dict[str, float]


class EmbeddingRunner:
    """See `core.Runner`. Keeps nothing from step to step."""

    def __init__(self, model: Any, pooling: Pooling, padding: int) -> None:
        """`padding` is the token that fills short rows."""
        self.model = model
        self._pooling = pooling
        self._padding = padding

    def copy(self, copies: tuple[Load | Save, ...]) -> None:
        """There is no prefix cache: a token's state depends on all that follows it."""

    def run(self, batch: Batch) -> Sampled:
        started = time.perf_counter()
        vectors = self.embed([chunk.sequence.tokens for chunk in batch.chunks])
        forward_s = time.perf_counter() - started
        outcomes = [
            Outcome(chunk, failed=not bool(vector.isfinite().all()), embedding=vector.numpy().tobytes())
            for chunk, vector in zip(batch.chunks, vectors, strict=True)
        ]
        return Sampled(tuple(outcomes), forward_s)

    @torch.inference_mode()
    def embed(self, prompts: Rows[list[int]]) -> torch.Tensor:
        """fp32 `[prompts, size]`, each of length 1. Prompts of similar length go together, padded to the longest."""
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        vectors: dict[int, torch.Tensor] = {}
        for group in _groups(order, prompts):
            found = self._group([prompts[at] for at in group])
            vectors.update(zip(group, found, strict=True))
        return torch.stack([vectors[at] for at in range(len(prompts))])

    def _group(self, prompts: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, prompts))
        tokens = torch.tensor([prompt + [self._padding] * (longest - len(prompt)) for prompt in prompts])
        seen = torch.arange(longest)[None] < torch.tensor([[len(prompt)] for prompt in prompts])
        states: torch.Tensor = self.model(input_ids=tokens, attention_mask=seen.long()).last_hidden_state
        if self._pooling == "cls":
            vectors = states[:, 0]
        else:
            weights = seen[..., None].to(states.dtype)
            vectors = (states * weights).sum(1) / weights.sum(1)
        # Also where the folder does not ask for it: OpenAI's are.
        return normalize(vectors.float(), dim=-1)


def load(config: EngineConfig) -> LoadedEncoder:
    """Raises EncoderUnusableError."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    folder = Path(config.model_path)
    model = _read(folder)
    pooling = read_pooling(folder)
    told = model.config
    limit = max_tokens(folder, told)
    if (config.max_context or 1) > limit:
        raise EncoderUnusableError(f"max_context is {config.max_context}, but the model takes {limit} tokens")
    seconds["read"] = round(time.perf_counter() - started, 3)
    runner = EmbeddingRunner(model, pooling, int(getattr(told, "pad_token_id", None) or 0))
    lengths = [min(length, limit) for length in _PROBE_LENGTHS]
    probes = [[(7 * at + length) % told.vocab_size for at in range(length)] for length in lengths]
    try:
        wanted = torch.cat([runner.embed([probe]) for probe in probes])
        started = time.perf_counter()
        weights_bytes = linears.pack(model, config.precision)
        parity = float((runner.embed(probes) - wanted).abs().max())
    except _FOREIGN_ERRORS as exc:
        raise EncoderUnusableError(f"{folder}: {told.model_type} does not run as an encoder: {exc}") from exc
    seconds["pack"] = round(time.perf_counter() - started, 3)
    if not parity <= (TOLERANCE if config.precision == "fp32" else _MOST_APART):
        raise EncoderUnusableError(f"{folder}: batched, vectors differ by {parity:.3g} from those of each text alone")
    return LoadedEncoder(
        runner,
        max_context=config.max_context or limit,
        vocab_size=int(told.vocab_size),
        size=wanted.shape[1],
        weights_bytes=weights_bytes,
        parity=parity,
        seconds=seconds,
    )


def report(loaded: LoadedEncoder, config: EngineConfig) -> Ready:
    """What the front is told of a loaded encoder."""
    return Ready(
        tier="encoder",
        precision=config.precision,
        device=config.device,
        dtype="float32",
        max_context=loaded.max_context,
        max_sequences=config.max_sequences,
        vocab_size=loaded.vocab_size,
        weights_bytes=loaded.weights_bytes,
        fingerprint=fingerprint(Path(config.model_path), config.precision, "encoder"),
        load_seconds=loaded.seconds,
        embedding_size=loaded.size,
    )


def read_pooling(folder: Path) -> Pooling:
    """From `modules.json` and `1_Pooling/config.json`; without them the mean.

    Raises EncoderUnusableError for a way of pooling that is not known here.
    """
    modules = _json(folder / "modules.json")
    if modules is None:
        return "mean"
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise EncoderUnusableError(f"{folder}: its modules.json is no list of objects")
    kinds = {str(module.get("type", "")).rsplit(".", 1)[-1]: str(module.get("path", "")) for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise EncoderUnusableError(f"{folder}: its modules.json asks for {', '.join(sorted(unknown))}")
    inside = Path(kinds.get("Pooling", "1_Pooling"))
    if inside.is_absolute() or ".." in inside.parts:
        raise EncoderUnusableError(f"{folder}: its modules.json leads out of the folder")
    pooling = _json(folder / inside / "config.json")
    told = pooling if isinstance(pooling, dict) else {}
    modes = {name for name, on in told.items() if name.startswith("pooling_mode_") and on is True}
    if not modes <= {"pooling_mode_cls_token", "pooling_mode_mean_tokens"} or len(modes) > 1:
        raise EncoderUnusableError(f"{folder}: it pools by {', '.join(sorted(modes))}; known are one of cls and mean")
    return "cls" if "pooling_mode_cls_token" in modes else "mean"


def max_tokens(folder: Path, config: Any) -> int:
    """How long a text may be: what the model was made for, else its positions less those its padding takes."""
    told = _json(folder / "sentence_bert_config.json")
    made_for = told.get("max_seq_length") if isinstance(told, dict) else None
    positions = int(getattr(config, "max_position_embeddings", 512))
    if getattr(config, "model_type", "") in _POSITIONS_BEHIND_PADDING:
        positions -= int(config.pad_token_id or 0) + 1
    return min(positions, made_for) if isinstance(made_for, int) and made_for > 0 else positions


def _groups(order: list[int], prompts: Rows[list[int]]) -> list[list[int]]:
    """Cut prompts, in order of length, where padding the shorter ones costs more than another call."""
    groups: list[list[int]] = []
    for at in order:
        longest = len(prompts[at])
        if groups:
            tokens = sum(len(prompts[other]) for other in groups[-1]) + longest
            if longest * (len(groups[-1]) + 1) <= _MOST_PADDING * tokens:
                groups[-1].append(at)
                continue
        groups.append([at])
    return groups


def _read(folder: Path) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _check_encodes(folder, config)
        model: PreTrainedModel = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except _FOREIGN_ERRORS as exc:
        raise EncoderUnusableError(f"{folder}: Transformers cannot load this model: {exc}") from exc
    return model.eval().requires_grad_(requires_grad=False)


def _check_encodes(folder: Path, config: Any) -> None:
    """Raises EncoderUnusableError for a model that is made to generate."""
    decodes = any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder"))
    if decodes or any(name.endswith(("CausalLM", "LMHeadModel")) for name in config.architectures or ()):
        raise EncoderUnusableError(f"{folder}: {config.model_type} generates text; embeddings take an encoder")


def _json(path: Path) -> Any:
    """A small file of the folder; None if it is not there. Raises EncoderUnusableError if it cannot be read."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as exc:
        raise EncoderUnusableError(f"{path} is not JSON") from exc
