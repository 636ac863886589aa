"""The tier of row batches: the model's own forward and cache, with the sequences that decode as rows of one batch.

A prompt is computed alone. Its cache joins the batch when it decodes, padded on the left to the longest, and is taken
out again when the batch changes. For models whose attention is not ours to replace: recurrent and hybrid ones, ALiBi.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from typing_extensions import override

from sidecar.engine.batch import Chunk
from sidecar.engine.sequential import Row, SequentialForward, tensors


@dataclass(slots=True)
class Joined:
    """A batch: the slots of its rows, in order, how many tokens each has, and the cache of all. Mutable: but `slots`.

    Row `n` of the cache has `max(lengths) - lengths[n]` columns of padding on the left.
    """

    slots: tuple[int, ...]
    lengths: list[int]
    cache: Any

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def padded(self) -> bool:
        """Whether there is padding: recurrent states have none, however long their sequences are."""
        return min(self.lengths) < self.longest and any(hasattr(layer, "keys") for layer in self.cache.layers)


class RowsForward(SequentialForward):
    """Mutable beside what it inherits: `_joined`, the batch of the last decode step."""

    _joined: Joined | None = None

    @override
    def release(self, slot: int, *, spoiled: bool = False) -> None:
        if self._joined is not None and slot in self._joined.slots:
            self._part()
        super().release(slot, spoiled=spoiled)

    @override
    def _decode(self, chunks: tuple[Chunk, ...]) -> list[torch.Tensor]:
        if not chunks:
            return []
        joined = self._join(chunks)
        past = self._tensor([joined.lengths]).t()
        mask = None
        if joined.padded:
            mask = (torch.arange(joined.longest + 1, device=past.device)[None] >= joined.longest - past).long()
        tokens = self._tensor([chunk.tokens for chunk in chunks])
        logits = self._forward(tokens, joined.cache, mask, past, 1)[:, -1].float()
        joined.lengths = [length + 1 for length in joined.lengths]
        return [logits]

    @override
    def _row(self, chunk: Chunk) -> Row:
        # A slot that decoded a moment ago and is to be read on alone.
        if self._joined is not None and chunk.sequence.slot in self._joined.slots:
            self._part()
        return super()._row(chunk)

    def _join(self, chunks: tuple[Chunk, ...]) -> Joined:
        """The batch of these chunks' slots, each with its tokens up to the chunk."""
        slots = tuple(chunk.sequence.slot for chunk in chunks)
        starts = [chunk.start for chunk in chunks]
        if self._joined is not None and self._joined.slots == slots and self._joined.lengths == starts:
            return self._joined
        self._part()
        rows = [self._row(chunk) for chunk in chunks]
        for slot in slots:
            del self._rows[slot]
        self._joined = Joined(slots, starts, merged([row.cache for row in rows], starts))
        return self._joined

    def _part(self) -> None:
        """Take the batch apart: each row is a cache of its own again."""
        joined, self._joined = self._joined, None
        if joined is None:
            return
        for row, (slot, length) in enumerate(zip(joined.slots, joined.lengths, strict=True)):
            self._rows[slot] = Row(selected(joined.cache, row, joined.longest - length), length)


def merged(caches: list[Any], lengths: list[int]) -> Any:
    """Caches of one sequence each as one of a batch; keys and values are padded on the left with zeros."""
    longest = max(lengths)
    made = copy.copy(caches[0])
    made.layers = []
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        parts = [dict(tensors(layer)) for layer in layers]
        joined: dict[str, torch.Tensor] = {}
        for name in parts[0]:
            rows = [part[name] for part in parts]
            if name in {"keys", "values"}:
                rows = [pad(row, (0, 0, longest - length, 0)) for row, length in zip(rows, lengths, strict=True)]
            joined[name] = torch.cat(rows)
        made.layers.append(_with(layers[0], joined))
    return made


def selected(cache: Any, row: int, padding: int) -> Any:
    """One row of a batch's cache as a cache of its own, without its padding."""
    made = copy.copy(cache)
    made.layers = []
    for layer in cache.layers:
        parts = {
            name: (tensor[row : row + 1, :, padding:] if name in {"keys", "values"} else tensor[row : row + 1]).clone()
            for name, tensor in tensors(layer)
        }
        made.layers.append(_with(layer, parts))
    return made


def _with(layer: Any, parts: dict[str, torch.Tensor]) -> Any:
    """A copy of a cache's layer with other tensors, named as `tensors` names them."""
    made = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(made, name, dict(value))
    for name, tensor in parts.items():
        attribute, _, key = name.partition(".")
        if key:
            getattr(made, attribute)[int(key)] = tensor
        else:
            setattr(made, name, tensor)
    return made
