"""Runs a batch through the model: tokens in, the next token of each sampling sequence out."""

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sidecar.engine.attention import StepContext
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.sampler import sample


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of the chunks that sample, in the batch's order; None for a row whose logits are not finite."""

    chunks: tuple[Chunk, ...]
    tokens: tuple[int | None, ...]
    forward_s: float


class ModelRunner:
    """The model and the context its attention reads. Mutable: through `context`, the KV cache."""

    def __init__(self, model: PreTrainedModel, context: StepContext) -> None:
        self._model = model
        self._context = context

    @property
    def bytes_per_token(self) -> int:
        """What one token costs in the KV cache; known once a forward has run."""
        return self._context.cache.bytes_per_token

    def run(self, batch: Batch, capacity_tokens: int) -> Sampled:
        """One step. `capacity_tokens` bounds the memory that the cache may keep."""
        ends = {chunk.sequence.slot: chunk.end for chunk in batch.chunks}
        self._context.cache.touch(ends, capacity_tokens)
        started = time.perf_counter()
        logits = self.logits(batch)
        forward_s = time.perf_counter() - started
        chunks = tuple(chunk for chunk in batch.chunks if chunk.samples)
        if not chunks:
            return Sampled((), (), forward_s)
        tokens = sample(
            logits,
            [chunk.sequence.submit.sampling for chunk in chunks],
            [len(chunk.sequence.tokens) for chunk in chunks],
        )
        return Sampled(chunks, tuple(tokens), forward_s)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """fp32 `[sampling chunks, vocabulary]`; what the batch computes is in the cache afterwards."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for chunk in batch.chunks:
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            if chunk.samples:
                rows.append(len(tokens) - 1)
        at = torch.tensor(positions)
        self._context.begin(batch, at)
        # A step of prompts that go on needs no logits, but a model wants to give some.
        keep = torch.tensor(rows or [len(tokens) - 1])
        output = self._model(
            input_ids=torch.tensor([tokens]),
            position_ids=at[None],
            use_cache=False,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits[0, : len(rows)]
        return logits.float()
