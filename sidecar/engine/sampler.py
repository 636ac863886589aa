"""Picks the next token of each row from its logits. Each row alone decides its randomness.

A row's uniform number is a hash of its seed and its position, and the token is where the cumulative distribution passes
it: the same seed gives the same text whatever else is in the batch, and greedy rows take no part in it.

In order: `logit_bias`, then the penalties, change the logits; then temperature, top_k, top_p and min_p, as the
`LogitsProcessor`s of Transformers come one after the other. Log-probabilities are of the logits as the model gave them.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from sidecar.engine.filters import draw, top
from sidecar.wire.frames import Logprobs, Sampling

_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """What decides the pick from one row of logits: the sequence's tokens so far (`tokens`, then `draft`), of which the
    first `prompt_tokens` are its prompt, and how it wants to be sampled. `logprobs` as in `Submit`.
    """

    sampling: Sampling
    tokens: list[int]
    prompt_tokens: int
    draft: tuple[int, ...] = ()
    logprobs: int | None = None

    @property
    def position(self) -> int:
        return len(self.tokens) + len(self.draft)


@dataclass(frozen=True, slots=True)
class Picked:
    """`token` is None where a row has no finite maximum; `logprobs` where none were asked for."""

    token: int | None
    logprobs: Logprobs | None = None


def is_greedy(sampling: Sampling) -> bool:
    """Whether only the likeliest token can be picked."""
    return sampling.temperature == 0 or sampling.top_p == 0 or sampling.top_k == 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a counter: SplitMix64's output function on `seed` and `position`.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)


def sample(logits: torch.Tensor, rows: Rows[Row]) -> list[Picked]:
    """One token a row of `logits`, fp32 `[rows, vocabulary]`."""
    likeliest = _argmax(logits)
    largest = logits.gather(1, torch.tensor(likeliest, device=logits.device)[:, None])[:, 0]
    tokens: list[int | None] = [
        token if finite else None for token, finite in zip(likeliest, largest.isfinite().tolist(), strict=True)
    ]
    sound = [at for at, token in enumerate(tokens) if token is not None]
    changed = [at for at in sound if _is_changed(rows[at].sampling)]
    adjusted = logits
    if changed:
        adjusted = logits.clone()
        for at in changed:
            _adjust(adjusted[at], rows[at])
        greedy = [at for at in changed if is_greedy(rows[at].sampling)]
        for at, token in zip(greedy, _argmax(adjusted[greedy]) if greedy else (), strict=True):
            tokens[at] = token
    drawn = [at for at in sound if not is_greedy(rows[at].sampling)]
    if drawn:
        chosen = adjusted if len(drawn) == len(rows) else adjusted[drawn]
        draws = [uniform(rows[at].sampling.seed, rows[at].position) for at in drawn]
        for at, token in zip(drawn, draw(chosen, [rows[at].sampling for at in drawn], draws), strict=True):
            tokens[at] = token
    told = _told(logits, rows, tokens)
    return [Picked(token, told.get(at)) for at, token in enumerate(tokens)]


def score(logits: torch.Tensor, tokens: Rows[int], most: int) -> list[Logprobs]:
    """The log-probabilities of given tokens, and of the `most` likeliest: `logits` fp32 `[tokens, vocabulary]`."""
    total = logits.logsumexp(-1, keepdim=True)
    own = (logits.gather(1, torch.tensor(list(tokens), device=logits.device)[:, None]) - total)[:, 0].tolist()
    if not most:
        return [Logprobs(value) for value in own]
    best, ids = top(logits, min(most, logits.shape[1]))
    return [Logprobs(*found) for found in zip(own, ids.tolist(), (best - total).tolist(), strict=True)]


def _told(logits: torch.Tensor, rows: Rows[Row], tokens: list[int | None]) -> dict[int, Logprobs]:
    """What the rows that ask are told of the token they got; by how much they ask, so that nobody waits for more."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.logprobs is not None and token is not None:
            asked.setdefault(row.logprobs, []).append((at, token))
    told: dict[int, Logprobs] = {}
    for most, those in asked.items():
        places, picked = [at for at, _ in those], [token for _, token in those]
        chosen = logits if len(places) == len(rows) else logits[places]
        told.update(zip(places, score(chosen, picked, most), strict=True))
    return told


def _argmax(logits: torch.Tensor) -> list[int]:
    """The first of the largest, by row; of NaN, if there is one."""
    if logits.device.type != "cpu":
        found: list[int] = logits.argmax(-1).tolist()
        return found
    # NumPy's is several times faster than PyTorch's on a CPU.
    first: list[int] = logits.numpy().argmax(-1).tolist()
    return first


def _is_changed(sampling: Sampling) -> bool:
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def _adjust(logits: torch.Tensor, row: Row) -> None:
    """Change one row of logits, `[vocabulary]`, in place.

    Repetition as Transformers has it (Keskar et al., arXiv 1909.05858), over prompt and answer; presence and frequency
    as OpenAI's reference defines them, over the answer.
    """
    sampling = row.sampling
    if sampling.logit_bias:
        logits[list(sampling.logit_bias)] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
    if sampling.repetition_penalty != 1:
        # A token that is there more than once is written more than once, the same each time.
        seen = torch.tensor([*row.tokens, *row.draft], dtype=torch.long, device=logits.device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        said = np.array([*row.tokens[row.prompt_tokens :], *row.draft], dtype=np.int64)
        tokens, times = (torch.from_numpy(found).to(logits.device) for found in np.unique(said, return_counts=True))
        logits[tokens] -= times * sampling.frequency_penalty + sampling.presence_penalty
