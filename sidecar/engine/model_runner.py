"""Runs a batch: its logits from a tier's forward, then each sequence's next tokens and what else it asked for."""

import time
from dataclasses import dataclass
from typing import Protocol

import torch

from sidecar.engine.batch import Batch, Chunk, DeviceLostError, Load, Save
from sidecar.engine.prefix_cache import BLOCK_TOKENS, Pair, PrefixCache
from sidecar.engine.sampler import Picked, Row, sample, score
from sidecar.wire.frames import Logprobs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step gave one chunk.

    `tokens`: none if the chunk only goes on, one as a rule, more where drafts turned out right. `failed`: its logits
    are not finite. The log-probabilities are as in `Delta`.
    """

    chunk: Chunk
    tokens: tuple[int, ...] = ()
    failed: bool = False
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    embedding: bytes = b""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One outcome for each chunk, in the batch's order. `forward_s`: seconds in the model."""

    outcomes: tuple[Outcome, ...]
    forward_s: float


class BlockStore(Protocol):
    """Where a tier keeps blocks of what it has computed for later sequences; see `kv_cache.SlotCache`."""

    def reserve(self, blocks: int) -> None: ...
    def save(self, slot: int, pairs: tuple[Pair, ...]) -> None: ...
    def load(self, slot: int, pairs: tuple[Pair, ...]) -> None: ...


class Forward(Protocol):
    """An execution tier: the model, and where it keeps what it has computed of each slot's sequence."""

    @property
    def store(self) -> BlockStore | None:
        """None for a tier that keeps nothing of a sequence that has ended."""

    def logits(self, batch: Batch) -> torch.Tensor:
        """fp32 `[rows, vocabulary]`: the last `logit_rows` of each chunk, in order. What it computed is kept.

        A chunk that starts at 0 finds nothing kept of its slot.
        """

    def keep(self, tokens: int) -> None:
        """From here on all sequences together hold up to so many tokens; none holds any now."""

    def release(self, slot: int, *, spoiled: bool = False) -> None:
        """What is kept of a slot's sequence is not needed any more. `spoiled`: it holds numbers that are none."""

    @property
    def bytes_per_token(self) -> int:
        """What one token of a sequence costs in memory; known once a forward has run."""


class ModelRunner:
    """A tier with the sampler behind it. `forward` holds all that changes."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward

    def keep_prefixes(self, tokens: int) -> PrefixCache | None:
        """A prefix cache with room for so many tokens; None if that is no block, or the tier keeps none.

        Call it when a forward has run.
        """
        blocks = tokens // BLOCK_TOKENS
        store = self.forward.store
        if store is None or not blocks:
            return None
        store.reserve(blocks)
        return PrefixCache(blocks)

    @torch.inference_mode()
    def copy(self, copies: tuple[Load | Save, ...]) -> None:
        """Do what a batch wants done before it runs."""
        store = self.forward.store
        if store is None:
            raise RuntimeError("a tier without a store has no prefix cache")
        for copy in copies:
            if isinstance(copy, Load):
                store.load(copy.slot, copy.pairs)
            else:
                store.save(copy.slot, copy.pairs)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Sampled:
        """One step. Raises DeviceLostError, and what the model raises."""
        started = time.perf_counter()
        try:
            logits = self.forward.logits(batch)
            forward_s = time.perf_counter() - started
            # A GPU computes while the next is prepared: what it failed at may be told here.
            outcomes = tuple(_outcomes(batch, logits))
        except torch.AcceleratorError as exc:
            raise DeviceLostError(str(exc)) from exc
        for outcome in outcomes:
            if outcome.failed:
                self.forward.release(outcome.chunk.sequence.slot, spoiled=True)
        return Sampled(outcomes, forward_s)


def _outcomes(batch: Batch, logits: torch.Tensor) -> list[Outcome]:
    picking: list[int] = []
    rows: list[Row] = []
    first = 0
    for chunk in batch.chunks:
        first += chunk.logit_rows
        if chunk.samples:
            submit = chunk.sequence.submit
            drafted = len(chunk.draft)
            picking += range(first - drafted - 1, first)
            sequence, prompt_tokens = chunk.sequence, len(submit.prompt_ids)
            masks = [None] * (drafted + 1) if sequence.constraint is None else sequence.constraint.masks(chunk.draft)
            rows += [
                Row(submit.sampling, sequence.tokens, prompt_tokens, chunk.draft[:count], submit.logprobs, mask)
                for count, mask in enumerate(masks)
            ]
    picked = iter(sample(logits if len(picking) == len(logits) else logits[picking], rows) if rows else ())
    outcomes: list[Outcome] = []
    first = 0
    for chunk in batch.chunks:
        scores = _prompt_scores(chunk, logits[first : first + chunk.logit_rows]) if chunk.scores else ()
        first += chunk.logit_rows
        own = [next(picked) for _ in range(len(chunk.draft) + 1)] if chunk.samples else []
        outcomes.append(_outcome(chunk, own, scores))
    return outcomes


def _outcome(chunk: Chunk, picked: list[Picked], scores: tuple[Logprobs, ...]) -> Outcome:
    """Of the picked tokens those count whose drafts before them are what was picked there."""
    tokens: list[int] = []
    logprobs: list[Logprobs] = []
    for one, guess in zip(picked, [*chunk.draft, None], strict=False):
        if one.token is None:
            # The right guesses before it stand; the next step finds the same row again.
            return Outcome(chunk, tuple(tokens), not tokens, tuple(logprobs), scores)
        tokens.append(one.token)
        if one.logprobs is not None:
            logprobs.append(one.logprobs)
        if one.token != guess:
            break
    return Outcome(chunk, tuple(tokens), False, tuple(logprobs), scores)


def _prompt_scores(chunk: Chunk, logits: torch.Tensor) -> tuple[Logprobs, ...]:
    """Of the prompt tokens that follow the chunk's; those that were told before a preemption are not told again."""
    sequence = chunk.sequence
    end = min(chunk.end + 1, sequence.prompt_tokens)
    start = max(chunk.start + 1, sequence.scored)
    if start >= end:
        return ()
    wanted = logits[start - 1 - chunk.start : end - 1 - chunk.start]
    return tuple(score(wanted, sequence.submit.prompt_ids[start:end], sequence.submit.prompt_logprobs or 0))
