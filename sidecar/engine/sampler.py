"""Picks the next token of each row from its logits. Each row alone decides its randomness.

A row's uniform number is a hash of its seed and its position, and the token is where the cumulative distribution passes
it: the same seed gives the same text whatever else is in the batch, and greedy rows take no part in it.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Final

import torch

from sidecar.wire.frames import Logprobs, Sampling

_MASK: Final = (1 << 64) - 1
# How many candidates are looked at first, and then, where a row's top_p needs more; after that the whole vocabulary.
_CANDIDATES: Final = (256, 4096)


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


def sample(logits: torch.Tensor, rows: Rows[Row]) -> list[Picked]:
    """One token a row of `logits`, fp32 `[rows, vocabulary]`."""
    samplings = [row.sampling for row in rows]
    positions = [row.position for row in rows]
    finite = logits.amax(dim=-1).isfinite().tolist()
    # NumPy's argmax is several times faster than PyTorch's on a CPU; both take the first of equals.
    greedy = logits.numpy().argmax(-1).tolist()
    tokens: list[int | None] = [token if sound else None for token, sound in zip(greedy, finite, strict=True)]
    plain = [row for row, s in enumerate(samplings) if tokens[row] is not None and _is_plain(s)]
    if plain:
        for row, token in zip(plain, _draw_from_all(logits, plain, samplings, positions), strict=True):
            tokens[row] = token
    for row, sampling in enumerate(samplings):
        if tokens[row] is not None and not is_greedy(sampling) and not _is_plain(sampling):
            tokens[row] = _draw_filtered(logits[row], sampling, uniform(sampling.seed, positions[row]))
    return [Picked(token) for token in tokens]


def score(logits: torch.Tensor, tokens: Rows[int], top: int) -> list[Logprobs]:
    """The log-probabilities of given tokens, and of the `top` likeliest: `logits` fp32 `[tokens, vocabulary]`."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(list(tokens))[:, None]).squeeze(1).tolist()
    best, ids = logprobs.topk(min(top, logprobs.shape[1]))
    return [Logprobs(*found) for found in zip(own, ids.tolist(), best.tolist(), strict=True)]


def _is_plain(sampling: Sampling) -> bool:
    """Whether a row is sampled from the whole vocabulary."""
    return not is_greedy(sampling) and sampling.top_p >= 1 and sampling.top_k == 0


def _draw_from_all(logits: torch.Tensor, rows: list[int], samplings: Rows[Sampling], positions: Rows[int]) -> list[int]:
    chosen = logits if len(rows) == logits.shape[0] else logits[rows]
    temperatures = torch.tensor([[samplings[row].temperature] for row in rows])
    draws = torch.tensor([[uniform(samplings[row].seed, positions[row])] for row in rows], dtype=torch.float64)
    weights = _weights(chosen, temperatures).double().cumsum_(dim=-1)
    return _search(weights, draws)


def _draw_filtered(logits: torch.Tensor, sampling: Sampling, draw: float) -> int:
    """top_k first, then top_p on what is left, as Transformers' warpers do it."""
    weights = _weights(logits, torch.tensor([sampling.temperature]))
    vocabulary = weights.shape[0]
    if sampling.top_k:
        sums, tokens, _ = _nucleus(weights, min(sampling.top_k, vocabulary), sampling.top_p, None)
    else:
        total = weights.double().sum()
        sums, tokens, reached = _nucleus(weights, min(_CANDIDATES[0], vocabulary), sampling.top_p, total)
        for size in (*_CANDIDATES[1:], vocabulary):
            if reached:
                break
            sums, tokens, reached = _nucleus(weights, min(size, vocabulary), sampling.top_p, total)
    place = _search(sums[None], torch.tensor([[draw]], dtype=torch.float64))[0]
    return int(tokens[place])


def _nucleus(
    weights: torch.Tensor, count: int, top_p: float, total: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Of the `count` heaviest tokens the smallest set that holds `top_p` of `total` (None: of their own sum).

    Gives the running sums of their weights, the tokens, and whether the set ends within the `count`.
    """
    top, tokens = weights.topk(count)
    top = top.double()
    sums = top.cumsum(0)
    # What comes before a token decides whether it belongs to the set.
    inside = int(((sums - top) < top_p * (sums[-1] if total is None else total)).sum())
    return sums[:inside], tokens, inside < count


def _weights(logits: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Unnormalised probabilities. The maximum is taken off before the division, so no temperature overflows."""
    return (logits - logits.amax(dim=-1, keepdim=True)).div_(temperatures).exp_()


def _search(sums: torch.Tensor, draws: torch.Tensor) -> list[int]:
    """Where running sums `[rows, n]` pass `draws` `[rows, 1]` of their last one."""
    found = torch.searchsorted(sums, draws * sums[:, -1:], right=True).squeeze(1)
    places: list[int] = found.clamp_(max=sums.shape[1] - 1).tolist()
    return places
