"""Draws tokens from filtered distributions, many rows at once, without sorting a vocabulary. Pure tensors.

Filters let few tokens through as a rule, so the heaviest are looked at first. They are found in two steps: the blocks
with the largest maxima hold them, and only those blocks are looked into. Where a row's filters may let through more,
the weights of its whole vocabulary are sorted, without their tokens, for the weight that a token needs.

No sum runs over a whole row at once: PyTorch cuts such a sum between threads if the row is alone, and the last bit of
an answer would depend on the row's neighbours.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from math import inf, log
from typing import Final

import torch

from sidecar.wire.frames import Sampling

# How many of the heaviest tokens are looked at first; more, up to the second number, where top_k says so.
_CANDIDATES: Final = 64
_MOST_CANDIDATES: Final = 1024
_BLOCK: Final = 64
_SUM_BLOCK: Final = 256
# Rows that are worked on together on a CPU: their weights stay in its cache.
_GROUP: Final = 16
# A larger number's product with a sum can be rounded up to the sum, which nothing passes.
_LARGEST_DRAW: Final = 1 - 2**-52
# The smallest temperature that a quotient by it can be told from one by zero.
_COLDEST: Final = 1e-30
# Instead of a number of candidates.
_ALL: Final = 0
_TOO_MANY: Final = -1
_LN_2: Final = log(2)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How rows want to be drawn, fp64 `[rows, 5]`: one tensor, so that it reaches a GPU in one transfer."""

    table: torch.Tensor

    @classmethod
    def of(cls, samplings: Rows[Sampling], draws: Rows[float], logits: torch.Tensor) -> "_Wishes":
        rows = [
            (
                max(sampling.temperature, _COLDEST),
                sampling.top_k or inf,
                sampling.top_p if sampling.top_p < 1 else inf,
                # Of the heaviest token's weight, which passes whatever is asked for.
                min(sampling.min_p, 1.0),
                min(draw, _LARGEST_DRAW),
            )
            for sampling, draw in zip(samplings, draws, strict=True)
        ]
        return cls(torch.tensor(rows, dtype=torch.double, device=logits.device))

    @property
    def temperatures(self) -> torch.Tensor:
        return self.table[:, 0:1]

    @property
    def top_k(self) -> torch.Tensor:
        return self.table[:, 1:2]

    @property
    def min_p(self) -> torch.Tensor:
        return self.table[:, 3:4]

    @property
    def draws(self) -> torch.Tensor:
        return self.table[:, 4:5]

    def only(self, rows: list[int]) -> "_Wishes":
        return _Wishes(select(self.table, rows))

    def limits(self, mass: torch.Tensor) -> torch.Tensor:
        """What the heaviest of a row must add up to, `[rows, 1]`, if it is to hold top_p of `mass`."""
        return self.table[:, 2:3] * mass

    def kept(self, nucleus: torch.Tensor, count: int) -> torch.Tensor:
        """How many of a row's `count` heaviest tokens pass top_k and top_p, `[rows, 1]`; `nucleus` pass top_p alone."""
        return torch.minimum(nucleus, self.top_k.clamp(max=count).long())


def draw(logits: torch.Tensor, samplings: Rows[Sampling], draws: Rows[float]) -> list[int]:
    """A token of each row of `logits`, fp32 `[rows, vocabulary]`, by its number in [0, 1)."""
    tokens: list[int] = []
    for part in groups(logits):
        tokens += _draw(logits[part], samplings[part], draws[part])
    return tokens


def top(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row of `x` `[rows, n]`, largest first, and their indices: as `torch.topk`."""
    blocks = x.shape[1] // _BLOCK
    if count * 4 >= blocks:
        return x.topk(count)
    whole = blocks * _BLOCK
    folded = x[:, :whole].reshape(x.shape[0], blocks, _BLOCK)
    best = folded.amax(-1).topk(count, sorted=False).indices
    inside = folded.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    if whole < x.shape[1]:
        # What is behind the last whole block.
        inside = torch.cat([inside, x[:, whole:]], 1)
        best = torch.nn.functional.pad(best, (0, 1), value=blocks)
    values, at = inside.topk(count)
    return values, best.gather(1, at // _BLOCK).mul_(_BLOCK).add_(at % _BLOCK)


def log_mass(logits: torch.Tensor) -> torch.Tensor:
    """What is taken from logits to make log-probabilities of them: fp32 `[rows, vocabulary]` to `[rows, 1]`."""
    largest = logits.amax(-1, keepdim=True)
    weights = _weights(logits, largest, torch.ones_like(largest, dtype=torch.double))
    return (largest + _sums(weights)[:, -1:].log()).float()


def select(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some rows of logits, in ascending order; not a copy if those are all."""
    if len(rows) == logits.shape[0]:
        return logits
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def groups(logits: torch.Tensor) -> Iterator[slice]:
    """The rows of logits in parts that are worked on one after the other."""
    size = _GROUP if logits.device.type == "cpu" else max(1, logits.shape[0])
    for start in range(0, logits.shape[0], size):
        yield slice(start, start + size)


def _draw(logits: torch.Tensor, samplings: Rows[Sampling], draws: Rows[float]) -> list[int]:
    tokens = [0] * len(samplings)
    wishes = _Wishes.of(samplings, draws, logits)

    def give(rows: list[int], found: torch.Tensor) -> None:
        for at, token in zip(rows, found[:, 0].tolist(), strict=True):
            tokens[at] = token

    ways: dict[int, list[int]] = {}
    for at, sampling in enumerate(samplings):
        ways.setdefault(_candidates(sampling), []).append(at)
    unfiltered, wide = ways.pop(_ALL, []), ways.pop(_TOO_MANY, [])
    for count, narrow in ways.items():
        shares = [n for n, at in enumerate(narrow) if samplings[at].top_p < 1 and not samplings[at].top_k]
        found, is_short = _among_heaviest(select(logits, narrow), wishes.only(narrow), shares, count)
        give(narrow, found)
        wide += [at for at, more in zip(narrow, is_short[:, 0].tolist(), strict=True) if more]
    if wide:
        wide.sort()
        own = wishes.only(wide)
        give(wide, _by_weight(_filtered(_all_weights(select(logits, wide), own), own), own.draws))
    if unfiltered:
        own = wishes.only(unfiltered)
        give(unfiltered, _by_weight(_all_weights(select(logits, unfiltered), own), own.draws))
    return tokens


def _candidates(sampling: Sampling) -> int:
    """How many of the heaviest tokens tell what is drawn, as a rule; _ALL, or _TOO_MANY."""
    if sampling.top_p >= 1 and sampling.top_k == 0 and sampling.min_p == 0:
        return _ALL
    if sampling.top_p >= 1 or sampling.top_k <= _CANDIDATES:
        return _CANDIDATES
    # top_p is a share of what top_k leaves: fewer candidates do not tell that. Few sizes, so that rows share a call.
    return 1 << (sampling.top_k - 1).bit_length() if sampling.top_k <= _MOST_CANDIDATES else _TOO_MANY


def _among_heaviest(
    logits: torch.Tensor, wishes: _Wishes, shares: list[int], candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row from its heaviest, `[rows, 1]`, and whether its filters may let through more than those.

    Of the rows in `shares`, top_p is a share of the whole vocabulary.
    """
    vocabulary = logits.shape[1]
    count = min(candidates, vocabulary)
    values, ids = top(logits, count)
    weights = _scaled(values - values[:, :1], wishes.temperatures).double()
    sums = weights.cumsum(-1)
    top_k = wishes.top_k
    mass = sums.gather(1, (top_k.clamp(max=count) - 1).long())
    if shares:
        mass[shares] = _sums(_all_weights(select(logits, shares), wishes.only(shares)))[:, -1:]
    kept = wishes.kept(torch.searchsorted(sums, wishes.limits(mass)) + 1, count)
    kept = torch.minimum(kept, (weights >= wishes.min_p).sum(-1, keepdim=True))
    place = torch.searchsorted(sums, wishes.draws * sums.gather(1, kept - 1), right=True)
    return ids.gather(1, place), (kept == count) & (top_k > count) & (count < vocabulary)


def _filtered(weights: torch.Tensor, wishes: _Wishes) -> torch.Tensor:
    """The weights `[rows, n]`, in place, with zeros where the filters let nothing through."""
    size = weights.shape[1]
    ordered = _sorted(weights)
    allowed = ordered.masked_fill(torch.arange(size, device=weights.device) >= wishes.top_k, 0.0)
    sums = _sums(allowed)
    mass = sums[:, -1:]
    limits = wishes.limits(mass)
    nucleus = torch.where(limits < mass, _passing(allowed, sums, limits, right=False) + 1, size)
    kept = wishes.kept(nucleus, size)
    lightest = ordered.gather(1, kept - 1)
    weights.masked_fill_(weights < torch.maximum(lightest, wishes.min_p.float()), 0.0)
    if bool((ordered.gather(1, kept.clamp(max=size - 1)) == lightest).any()):
        # Of those that weigh the same the first ones pass, as many as are left.
        same = weights == lightest
        room = kept - (weights > lightest).sum(-1, keepdim=True)
        weights.masked_fill_(same & (same.cumsum(-1) > room), 0.0)
    return weights


def _by_weight(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The token of each row of weights `[rows, n]` that its draw falls on, `[rows, 1]`."""
    sums = _sums(weights)
    return _passing(weights, sums, draws * sums[:, -1:], right=True)


def _passing(weights: torch.Tensor, sums: torch.Tensor, wanted: torch.Tensor, *, right: bool) -> torch.Tensor:
    """Where weights `[rows, n]` add up to `wanted` `[rows, 1]` (`right`: to more), which is less than all of them.

    `sums` are those of the blocks: they tell the block, and then its tokens are added up.
    """
    block = torch.searchsorted(sums, wanted, right=right)
    block.clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    folded = weights.view(weights.shape[0], -1, _SUM_BLOCK)
    inside = folded.gather(1, block[..., None].expand(-1, 1, _SUM_BLOCK))[:, 0].double().cumsum(-1)
    place = torch.searchsorted(inside, wanted - before, right=right)
    # The sum of a block was rounded otherwise than the sum of its tokens: never past its last one.
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    return block * _SUM_BLOCK + torch.minimum(place, last)


def _sums(weights: torch.Tensor) -> torch.Tensor:
    """Running sums over the blocks of weights, fp64 `[rows, blocks]`."""
    return weights.view(weights.shape[0], -1, _SUM_BLOCK).sum(-1).double().cumsum(-1)


def _all_weights(logits: torch.Tensor, wishes: _Wishes) -> torch.Tensor:
    return _weights(logits, logits.amax(-1, keepdim=True), wishes.temperatures)


def _weights(logits: torch.Tensor, largest: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Unnormalised probabilities of the whole vocabulary, the largest is 1, and zeros up to whole blocks."""
    rows, vocabulary = logits.shape
    weights = logits.new_empty(rows, vocabulary + -vocabulary % _SUM_BLOCK)
    weights[:, vocabulary:] = -inf
    torch.sub(logits, largest, out=weights[:, :vocabulary])
    return _scaled(weights, temperatures)


def _scaled(below: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """Weights of logits from which their maximum is taken, so that no temperature overflows. In place."""
    # PyTorch's exp2 takes half the time of its exp on a CPU.
    return below.div_((temperatures * _LN_2).float()).exp2_()


def _sorted(weights: torch.Tensor) -> torch.Tensor:
    """Each row from its heaviest to its lightest."""
    if weights.device.type != "cpu":
        return weights.sort(-1, descending=True).values
    # NumPy's sort is vectorised: more than ten times faster than PyTorch's on a CPU.
    ordered = weights.numpy().copy()
    ordered.sort(-1)
    return torch.from_numpy(ordered).flip(-1)
