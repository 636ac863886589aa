"""Draws tokens from filtered distributions, many rows at once, without sorting a vocabulary. Pure tensors.

The heaviest tokens of a row are found in two steps: the blocks with the largest maxima hold them, so only those blocks
are looked into. How many tokens a row's filters let through is not known before; few are looked at first, and more for
the rows that need them.
"""

from collections.abc import Sequence as Rows
from typing import Final

import torch

from sidecar.wire.frames import Sampling

# How many candidates are looked at first, and then, where a row's filters let all of them through.
_CANDIDATES: Final = (64, 1024)
_BLOCK: Final = 64
_SUM_BLOCK: Final = 256


def draw(logits: torch.Tensor, samplings: Rows[Sampling], draws: Rows[float]) -> list[int]:
    """A token of each row of `logits`, fp32 `[rows, vocabulary]`, by its number in [0, 1)."""
    tokens = [0] * len(samplings)
    for one, is_open in ((_from_all, True), (_from_filtered, False)):
        rows = [at for at, sampling in enumerate(samplings) if _is_open(sampling) is is_open]
        if rows:
            chosen = logits if len(rows) == len(samplings) else logits[rows]
            found = one(chosen, [samplings[at] for at in rows], _column([draws[at] for at in rows], logits))
            for at, token in zip(rows, found, strict=True):
                tokens[at] = token
    return tokens


def top(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row of `x` `[rows, n]`, largest first, and their indices: as `torch.topk`."""
    blocks = x.shape[1] // _BLOCK
    if count * 4 >= blocks:
        return x.topk(count)
    whole = blocks * _BLOCK
    folded = x[:, :whole].reshape(x.shape[0], blocks, _BLOCK)
    best = folded.amax(-1).topk(count).indices
    inside = folded.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    places = (best[..., None] * _BLOCK + torch.arange(_BLOCK, device=x.device)).flatten(1)
    # What is behind the last whole block.
    inside = torch.cat([inside, x[:, whole:]], 1)
    rest = torch.arange(whole, x.shape[1], device=x.device).expand(x.shape[0], -1)
    values, at = inside.topk(count)
    return values, torch.cat([places, rest], 1).gather(1, at)


def _is_open(sampling: Sampling) -> bool:
    """Whether every token may come."""
    return sampling.top_p >= 1 and sampling.top_k == 0 and sampling.min_p == 0


def _from_all(logits: torch.Tensor, samplings: Rows[Sampling], draws: torch.Tensor) -> list[int]:
    """Blocks are added up first, and then the tokens of the one that holds the draw."""
    vocabulary = logits.shape[1]
    weights = _weights(logits, logits.amax(-1, keepdim=True), _temperatures(samplings, logits))
    if vocabulary % _SUM_BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % _SUM_BLOCK))
    folded = weights.view(weights.shape[0], -1, _SUM_BLOCK)
    sums = folded.sum(-1).double().cumsum(-1)
    wanted = draws * sums[:, -1:]
    block = torch.searchsorted(sums, wanted, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = folded.gather(1, block[..., None].expand(-1, 1, _SUM_BLOCK))[:, 0].double().cumsum(-1)
    # The sum of a block was rounded otherwise than the sum of its tokens: never past its last token.
    place = torch.searchsorted(inside, torch.minimum(wanted - before, inside[:, -1:]), right=True)
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    found: list[int] = (block * _SUM_BLOCK + torch.minimum(place, last))[:, 0].tolist()
    return found


def _from_filtered(logits: torch.Tensor, samplings: Rows[Sampling], draws: torch.Tensor) -> list[int]:
    vocabulary = logits.shape[1]
    tokens = [0] * len(samplings)
    rows = list(range(len(samplings)))
    for size in (*_CANDIDATES, vocabulary):
        count = min(size, vocabulary)
        chosen = logits if len(rows) == len(samplings) else logits[rows]
        found, short = _among(chosen, [samplings[at] for at in rows], draws[rows], count)
        for at, token in zip(rows, found, strict=True):
            tokens[at] = token
        rows = [at for at, is_short in zip(rows, short, strict=True) if is_short]
        if count == vocabulary or not rows:
            break
    return tokens


def _among(
    logits: torch.Tensor, samplings: Rows[Sampling], draws: torch.Tensor, count: int
) -> tuple[list[int], list[bool]]:
    """A token of each row, from its `count` heaviest; and whether its filters may let through more than those."""
    temperatures = _temperatures(samplings, logits)
    values, ids = top(logits, count)
    weights = _weights(values, values[:, :1], temperatures).double()
    sums = weights.cumsum(-1)
    top_k = torch.tensor([[s.top_k or logits.shape[1]] for s in samplings], device=logits.device)
    # top_p is of what top_k leaves: of those here, if that is all it leaves, or else of the whole vocabulary.
    mass = sums.gather(1, (top_k - 1).clamp_(max=count - 1))
    beyond = [at for at, s in enumerate(samplings) if s.top_p < 1 and (s.top_k or count + 1) > count]
    if beyond and count < logits.shape[1]:
        mass[beyond] = _weights(logits[beyond], values[beyond, :1], temperatures[beyond]).sum(-1, keepdim=True).double()
    limit = _column([s.top_p if s.top_p < 1 else float("inf") for s in samplings], logits) * mass
    # What comes before a token decides whether it belongs to the nucleus. The heaviest weighs 1.
    inside = sums - weights < limit
    inside &= torch.arange(count, device=logits.device) < top_k
    inside &= weights >= _column([s.min_p for s in samplings], logits)
    kept = inside.sum(-1, keepdim=True).clamp_(min=1)
    place = torch.searchsorted(sums, draws * sums.gather(1, kept - 1), right=True)
    found: list[int] = ids.gather(1, torch.minimum(place, kept - 1))[:, 0].tolist()
    short: list[bool] = ((kept == count) & (top_k > count))[:, 0].tolist()
    return found, short


def _weights(logits: torch.Tensor, largest: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Unnormalised probabilities. The maximum is taken off before the division, so no temperature overflows."""
    return (logits - largest).div_(temperatures).exp_()


def _temperatures(samplings: Rows[Sampling], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[s.temperature] for s in samplings], device=like.device)


def _column(numbers: Rows[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.double, device=like.device)[:, None]
