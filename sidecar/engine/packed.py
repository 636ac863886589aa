"""The fastest tier: one packed row of all tokens, and attention over our own KV cache."""

from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from sidecar.engine.attention import Context
from sidecar.engine.batch import Batch
from sidecar.engine.prefix_cache import Pair


class Network(Protocol):
    """Packed rows to logits `[kept, vocabulary]` of the rows `keep`; all int64, tokens and positions `[T]`."""

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor: ...


class StockNetwork(nn.Module):
    """A model as Transformers made it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model

    @override
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        output = self._model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep)
        logits: torch.Tensor = output.logits[0]
        return logits


class Cache(Protocol):
    """Where keys and values are: `kv_cache.SlotCache`, `paged_cache.PagedCache`."""

    @property
    def bytes_per_token(self) -> int: ...
    def keep(self, tokens: int) -> None: ...
    def touch(self, ends: dict[int, int]) -> None: ...
    def release(self, slot: int, *, clear: bool) -> None: ...
    def reserve(self, blocks: int) -> None: ...
    def save(self, slot: int, pairs: tuple[Pair, ...]) -> None: ...
    def load(self, slot: int, pairs: tuple[Pair, ...]) -> None: ...


class PackedForward:
    """See `model_runner.Forward`.

    Mutable: `store`, the KV cache, and `_context`, which reads it; `_unproven`, the slots whose last chunk gave no
    logits that were looked at.
    """

    def __init__(self, network: Network, context: Context, cache: Cache, device: torch.device | None = None) -> None:
        """`context` attends over `cache`, on `device`: a CPU unless told otherwise."""
        self.store = cache
        self._network = network
        self._context = context
        self._device = device
        self._unproven: set[int] = set()

    @property
    def bytes_per_token(self) -> int:
        return self.store.bytes_per_token

    @torch.inference_mode()
    def keep(self, tokens: int) -> None:
        self.store.keep(tokens)

    @torch.inference_mode()
    def release(self, slot: int, *, spoiled: bool = False) -> None:
        """The next sequence writes over what is there; only NaN would shine through, beside a longer neighbour.

        Whether there is any is seen when a token is chosen; of a prompt that was given up before, nobody knows.
        """
        self.store.release(slot, clear=spoiled or slot in self._unproven)
        self._unproven.discard(slot)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        self.store.touch({chunk.sequence.slot: chunk.end for chunk in batch.chunks})
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for chunk in batch.chunks:
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.end)
            rows += range(len(tokens) - chunk.logit_rows, len(tokens))
        self._unproven.update(chunk.sequence.slot for chunk in batch.chunks)
        at = torch.tensor(positions, device=self._device)
        self._context.begin(batch, at)
        # A step of prompts that go on needs no logits, but a model wants to give some.
        keep = torch.tensor(rows or [len(tokens) - 1], device=self._device)
        logits = self._network(torch.tensor(tokens, device=self._device), at, keep)[: len(rows)].float()
        self._unproven.difference_update(chunk.sequence.slot for chunk in batch.chunks if chunk.samples)
        return logits
