"""Picks the next token of each row from its logits. Each row alone decides its randomness.

A row's uniform number is a hash of its seed and its position, and the token is where the cumulative distribution passes
it: the same seed gives the same text whatever else is in the batch, and greedy rows take no part in it.

In order: `logit_bias`, then the penalties, change the logits, and what is forbidden is taken out; then temperature,
top_k, top_p and min_p, as the `LogitsProcessor`s of Transformers come one after the other. Log-probabilities are of the
logits as the model gave them.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np
import torch

from sidecar.engine.filters import draw, groups, log_mass, select, top
from sidecar.wire.frames import Logprobs, Sampling

_MASK: Final = (1 << 64) - 1
_LARGEST: Final = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Row:
    """What decides the pick from one row of logits: the sequence's tokens so far (`tokens`, then `draft`), of which the
    first `prompt_tokens` are its prompt, and how it wants to be sampled. `logprobs` as in `Submit`. `mask`: the tokens
    that its grammar lets through, a bit each, int32 `[words]` on the CPU; None without a grammar.
    """

    sampling: Sampling
    tokens: list[int]
    prompt_tokens: int
    draft: tuple[int, ...] = ()
    logprobs: int | None = None
    mask: torch.Tensor | None = None

    @property
    def position(self) -> int:
        return len(self.tokens) + len(self.draft)

    @property
    def generated(self) -> int:
        """How many tokens of the answer come before the pick."""
        return self.position - self.prompt_tokens

    def last(self, most: int) -> list[int]:
        """The last tokens of the answer before the pick, `most` at least if there are so many."""
        start = max(self.prompt_tokens, len(self.tokens) - most)
        return [*self.tokens[start:], *self.draft]


@dataclass(frozen=True, slots=True)
class Picked:
    """`token` is None where a row has no finite maximum, changed or not; `logprobs` where none were asked for."""

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
    tokens = _likeliest(logits)
    sound = [at for at, token in enumerate(tokens) if token is not None]
    changed = [at for at in sound if _is_changed(rows[at])]
    as_they_are = [at for at in sound if not _is_changed(rows[at]) and not is_greedy(rows[at].sampling)]
    if as_they_are:
        _draw(select(logits, as_they_are), rows, as_they_are, tokens)
    if changed:
        adjusted = logits.index_select(0, torch.tensor(changed, device=logits.device))
        changed_rows = [rows[at] for at in changed]
        _adjust(adjusted, changed_rows)
        # Last: no bias or penalty brings back what is forbidden.
        _forbid(adjusted, changed_rows)
        for at, token in zip(changed, _likeliest(adjusted), strict=True):
            tokens[at] = token
        drawn = [n for n, at in enumerate(changed) if tokens[at] is not None and not is_greedy(rows[at].sampling)]
        if drawn:
            _draw(select(adjusted, drawn), rows, [changed[n] for n in drawn], tokens)
    told = _told(logits, rows, tokens)
    return [Picked(token, told.get(at)) for at, token in enumerate(tokens)]


def score(logits: torch.Tensor, tokens: Rows[int], most: int) -> list[Logprobs]:
    """The log-probabilities of given tokens, and of the `most` likeliest: `logits` fp32 `[tokens, vocabulary]`."""
    scores: list[Logprobs] = []
    for part in groups(logits):
        some = logits[part]
        mass = log_mass(some)
        own = (some.gather(1, torch.tensor(list(tokens[part]), device=logits.device)[:, None]) - mass)[:, 0].tolist()
        if most:
            best, ids = top(some, min(most, some.shape[1]))
            found = zip(own, ids.tolist(), (best - mass).tolist(), strict=True)
            scores += [Logprobs(*one) for one in found]
        else:
            scores += [Logprobs(value) for value in own]
    return scores


def _draw(logits: torch.Tensor, rows: Rows[Row], places: list[int], tokens: list[int | None]) -> None:
    """Fill in the tokens at `places`, from their rows' logits."""
    samplings = [rows[at].sampling for at in places]
    draws = [uniform(rows[at].sampling.seed, rows[at].position) for at in places]
    for at, token in zip(places, draw(logits, samplings, draws), strict=True):
        tokens[at] = token


def _told(logits: torch.Tensor, rows: Rows[Row], tokens: list[int | None]) -> dict[int, Logprobs]:
    """What the rows that ask are told of the token they got; by how much they ask, so that nobody waits for more."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.logprobs is not None and token is not None:
            asked.setdefault(row.logprobs, []).append((at, token))
    told: dict[int, Logprobs] = {}
    for most, those in asked.items():
        places, picked = [at for at, _ in those], [token for _, token in those]
        told.update(zip(places, score(select(logits, places), picked, most), strict=True))
    return told


def _likeliest(logits: torch.Tensor) -> list[int | None]:
    """The first of the largest, by row; None where that is not finite."""
    likeliest = _argmax(logits)
    largest = logits.gather(1, torch.tensor(likeliest, device=logits.device)[:, None])[:, 0]
    return [token if finite else None for token, finite in zip(likeliest, largest.isfinite().tolist(), strict=True)]


def _argmax(logits: torch.Tensor) -> list[int]:
    """The first of the largest, by row; of NaN, if there is one."""
    if logits.device.type != "cpu":
        found: list[int] = logits.argmax(-1).tolist()
        return found
    # NumPy's is several times faster than PyTorch's on a CPU.
    first: list[int] = logits.numpy().argmax(-1).tolist()
    return first


def _is_changed(row: Row) -> bool:
    sampling = row.sampling
    return row.mask is not None or bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.allowed_token_ids
        or sampling.bad_words
        or (sampling.min_tokens and row.generated < sampling.min_tokens)
    )


def _adjust(logits: torch.Tensor, rows: Rows[Row]) -> None:
    """Biases and penalties, in place on `[rows, vocabulary]`.

    Repetition as Transformers has it (Keskar et al., arXiv 1909.05858), over prompt and answer; presence and frequency
    as OpenAI's reference defines them, over the answer.
    """
    flat, vocabulary = logits.view(-1), logits.shape[1]
    biases = {
        at * vocabulary + token: bias for at, row in enumerate(rows) for token, bias in row.sampling.logit_bias.items()
    }
    if biases:
        places = torch.tensor(list(biases), device=flat.device)
        flat[places] += torch.tensor(list(biases.values()), dtype=flat.dtype, device=flat.device)
    repeated = [at for at, row in enumerate(rows) if row.sampling.repetition_penalty != 1]
    if repeated:
        seen = [_places(rows[at], 0, at * vocabulary) for at in repeated]
        penalties = [rows[at].sampling.repetition_penalty for at in repeated]
        beside = np.repeat(np.array(penalties, dtype=np.float32), [len(found) for found in seen])
        _discourage(flat, *(torch.from_numpy(each).to(flat.device) for each in (np.concatenate(seen), beside)))
    penalised = [at for at, row in enumerate(rows) if row.sampling.presence_penalty or row.sampling.frequency_penalty]
    if penalised:
        said = [_places(rows[at], rows[at].prompt_tokens, at * vocabulary) for at in penalised]
        found, times = np.unique(np.concatenate(said), return_counts=True)
        once, each_time = np.array([(r.sampling.presence_penalty, r.sampling.frequency_penalty) for r in rows]).T
        row_of = found // vocabulary
        taken = (once[row_of] + times * each_time[row_of]).astype(np.float32)
        flat[torch.from_numpy(found).to(flat.device)] -= torch.from_numpy(taken).to(flat.device)


def _forbid(logits: torch.Tensor, rows: Rows[Row]) -> None:
    """Take out what may not be picked, in place on `[rows, vocabulary]`."""
    flat, vocabulary = logits.view(-1), logits.shape[1]
    limited = [at for at, row in enumerate(rows) if row.sampling.allowed_token_ids]
    if limited:
        allowed = [at * vocabulary + token for at in limited for token in rows[at].sampling.allowed_token_ids]
        places = torch.tensor(allowed, device=flat.device)
        kept = flat[places]
        logits.index_fill_(0, torch.tensor(limited, device=flat.device), -inf)
        flat[places] = kept
    forbidden = [at * vocabulary + token for at, row in enumerate(rows) for token in _forbidden(row)]
    if forbidden:
        flat[torch.tensor(forbidden, device=flat.device)] = -inf
    for at, row in enumerate(rows):
        if row.mask is not None:
            logits[at].masked_fill_(_unpacked(row.mask, vocabulary).to(flat.device), -inf)


def _unpacked(mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Where the bits of a mask are not set, bool `[vocabulary]`. NumPy has an instruction for it."""
    packed = np.invert(mask.numpy()).view(np.uint8)
    return torch.from_numpy(np.unpackbits(packed, bitorder="little", count=vocabulary).view(np.bool_))


def _forbidden(row: Row) -> list[int]:
    """The tokens that a row must not pick."""
    sampling = row.sampling
    ends = sampling.end_token_ids if row.generated < sampling.min_tokens else []
    if not sampling.bad_words:
        return ends
    said = row.last(max(map(len, sampling.bad_words)) - 1)
    return ends + [
        word[-1]
        for word in sampling.bad_words
        if len(word) <= len(said) + 1 and said[len(said) + 1 - len(word) :] == word[:-1]
    ]


def _places(row: Row, start: int, offset: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where the logits of a row's tokens from position `start` on are, if those of the row begin at `offset`."""
    return np.array([*row.tokens[start:], *row.draft], dtype=np.int64) + offset


def _discourage(flat: torch.Tensor, places: torch.Tensor, penalties: torch.Tensor) -> None:
    """Repetition. A place that is there more than once is written more than once, the same each time."""
    values = flat[places]
    changed = torch.where(values < 0, values * penalties, values / penalties)
    # A hard penalty must not make an infinity, which has no distribution.
    flat[places] = changed.clamp_(-_LARGEST, _LARGEST)
