"""The tier that is always right: each sequence alone, through the model's own forward and Transformers' own cache.

Slow, since nothing is batched; for models that nothing faster gets right. What it keeps of a slot is what it has
computed of that slot's sequence; a chunk that does not go on from there is computed from the first token again.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import DynamicCache, PreTrainedModel

from sidecar.engine.batch import Batch, Chunk

# A recurrent state does not grow with its sequence; in the count of memory by token it is spread over so many.
_STATE_TOKENS: Final = 256


@dataclass(slots=True)
class Row:
    """What is kept of a slot: a cache of batch size 1, and how many tokens of the sequence are in it. Mutable."""

    cache: Any
    computed: int = 0


class SequentialForward:
    """See `model_runner.Forward`.

    `chunks`: whether prompts may come in chunks; `cached`: whether the model's cache is used at all. Mutable: `_rows`
    (by slot), `_bytes_per_token`.
    """

    def __init__(self, model: PreTrainedModel, *, chunks: bool = True, cached: bool = True) -> None:
        self.chunks = chunks
        self._model = model
        self._cached = cached
        accepted = inspect.signature(inspect.unwrap(model.forward)).parameters
        # Transformers 5.24 calls every cache `cache`; before, it went by the kind of model.
        names = ("cache", "past_key_values", "cache_params")
        self._cache_name = next((name for name in names if name in accepted), "past_key_values")
        self._takes_positions = "position_ids" in accepted
        self._keeps = "logits_to_keep" in accepted
        self._rows: dict[int, Row] = {}
        self._bytes_per_token = 0

    @property
    def bytes_per_token(self) -> int:
        return max(1, self._bytes_per_token)

    @property
    def store(self) -> None:
        """A state cannot be cut into blocks."""

    def keep(self, tokens: int) -> None:
        """Each sequence takes memory as it grows."""

    def release(self, slot: int, *, spoiled: bool = False) -> None:  # noqa: ARG002  # spoiled or not, it goes
        self._rows.pop(slot, None)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        try:
            found = self._decode(batch.decodes) + [self._alone(chunk) for chunk in batch.prefills]
        except BaseException:
            # Whatever was half computed is computed anew.
            for chunk in batch.chunks:
                self.release(chunk.sequence.slot)
            raise
        return torch.cat(found)

    def _decode(self, chunks: tuple[Chunk, ...]) -> list[torch.Tensor]:
        return [self._alone(chunk) for chunk in chunks]

    def _alone(self, chunk: Chunk) -> torch.Tensor:
        """Logits, `[chunk.logit_rows, vocabulary]`."""
        if not self._cached:
            return self._call(self._tensor([chunk.sequence.tokens[: chunk.end]]), None, 0, chunk.logit_rows)[0]
        row = self._row(chunk)
        logits = self._call(self._tensor([chunk.tokens]), row.cache, row.computed, chunk.logit_rows)
        row.computed = chunk.end
        self._bytes_per_token = self._bytes_per_token or _bytes_per_token(row)
        return logits[0]

    def _row(self, chunk: Chunk) -> Row:
        """What is kept of the chunk's slot, exactly up to its start."""
        slot = chunk.sequence.slot
        row = self._rows.get(slot)
        if row is None or row.computed != chunk.start:
            row = self._rows[slot] = Row(_new_cache(self._model))
            if chunk.start:
                self._call(self._tensor([chunk.sequence.tokens[: chunk.start]]), row.cache, 0, 0)
                row.computed = chunk.start
        return row

    def _call(self, tokens: torch.Tensor, cache: Any, past: int, keep: int) -> torch.Tensor:
        """fp32 `[1, keep, vocabulary]` of int64 `tokens` `[1, T]` behind `past` others."""
        logits = self._forward(tokens, cache, None, past, keep)
        return logits[:, logits.shape[1] - keep :].float()

    def _forward(
        self, tokens: torch.Tensor, cache: Any, mask: torch.Tensor | None, past: int | torch.Tensor, keep: int
    ) -> torch.Tensor:
        """The model's own logits. `mask` int64 `[B, past + T]`, None without padding; `past` a number, or `[B, 1]`."""
        told: dict[str, Any] = {"input_ids": tokens, "use_cache": cache is not None}
        if mask is not None:
            told["attention_mask"] = mask
        if cache is not None:
            told[self._cache_name] = cache
        if self._takes_positions:
            told["position_ids"] = (torch.arange(tokens.shape[1], device=tokens.device)[None] + past).expand(
                tokens.shape
            )
        if self._keeps:
            # 0 would keep all of them.
            told["logits_to_keep"] = max(1, keep)
        logits: torch.Tensor = self._model(**told).logits
        return logits

    def _tensor(self, numbers: list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._model.device)


def _new_cache(model: PreTrainedModel) -> Any:
    """A cache for one sequence. Windows are left to the mask, so that every layer keeps as many tokens."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    recurrent = bool(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    stateful = recurrent or not hasattr(model.config.get_text_config(), "num_attention_heads")
    return DynamicCache(config=model.config) if stateful else DynamicCache()


def tensors(layer: Any) -> list[tuple[str, torch.Tensor]]:
    """All tensors of a cache's layer that have a batch dimension, by name; `keys` and `values` are `[B, H, T, D]`."""
    found: list[tuple[str, torch.Tensor]] = []
    for name, value in vars(layer).items():
        if isinstance(value, torch.Tensor) and value.ndim > 1:
            found.append((name, value))
        elif isinstance(value, dict):
            found += [(f"{name}.{key}", part) for key, part in value.items() if isinstance(part, torch.Tensor)]
    return found


def _bytes_per_token(row: Row) -> int:
    growing = fixed = 0
    for layer in row.cache.layers:
        for name, tensor in tensors(layer):
            if name in {"keys", "values"}:
                growing += tensor.nbytes
            else:
                fixed += tensor.nbytes
    return growing // max(1, row.computed) + fixed // _STATE_TOKENS
