"""Tokens are drawn from the right distribution, by a number that depends on seed and position alone."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.engine.sampler import Row, uniform
from sidecar.engine.sampler import sample as pick
from sidecar.wire.frames import Sampling

VOCABULARY = 50


def sample(rows: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int | None]:
    made = [Row(how, [0] * length, 0) for how, length in zip(samplings, positions, strict=True)]
    return [picked.token for picked in pick(rows, made)]


DRAWS = 4000


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(row: torch.Tensor, sampling: Sampling) -> dict[int, float]:
    """How often each token comes, over many positions."""
    rows = row.expand(DRAWS, -1)
    tokens = sample(rows, [sampling] * DRAWS, range(DRAWS))
    return {int(token or 0): times / DRAWS for token, times in Counter(tokens).items()}


def expected(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Transformers' warpers, written naively: temperature, top_k, top_p."""
    probabilities = (row[0].double() / sampling.temperature).softmax(-1)
    if sampling.top_k:
        probabilities[probabilities.argsort(descending=True)[sampling.top_k :]] = 0
        probabilities /= probabilities.sum()
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    probabilities[order[before >= sampling.top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(temperature=1, top_k=1), Sampling(temperature=1, top_p=0)],
    ids=["temperature 0", "top_k 1", "top_p 0"],
)
def test_greedy_is_the_likeliest_token(sampling: Sampling) -> None:
    rows = logits(3)
    assert sample(rows, [sampling] * 3, [1, 2, 3]) == rows.argmax(-1).tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1),
        Sampling(temperature=0.5),
        Sampling(temperature=2, top_p=0.8),
        Sampling(temperature=1, top_k=5),
        Sampling(temperature=1, top_k=10, top_p=0.7),
        Sampling(temperature=1, top_p=1e-9),
        Sampling(temperature=1, top_k=VOCABULARY * 10),
    ],
    ids=str,
)
def test_a_token_comes_as_often_as_its_probability_says(sampling: Sampling) -> None:
    row = logits()
    seen, wanted = frequencies(row, sampling), expected(row, sampling)
    for token in range(VOCABULARY):
        assert seen.get(token, 0.0) == pytest.approx(float(wanted[token]), abs=0.035)
    assert set(seen) <= {token for token in range(VOCABULARY) if wanted[token] > 0}


def test_a_nucleus_wider_than_the_first_candidates_is_found_whole() -> None:
    flat = torch.zeros(1, 6000)
    drawn = {sample(flat, [Sampling(temperature=1, top_p=0.99)], [position])[0] for position in range(300)}
    assert len(drawn) > 250
    assert max(token or 0 for token in drawn) > 4096


def test_the_same_seed_and_position_give_the_same_token_beside_any_neighbour() -> None:
    rows = logits(4)
    mine = Sampling(temperature=1.3, seed=42)
    alone = sample(rows[:1], [mine], [7])[0]
    others = [Sampling(temperature=0), Sampling(temperature=1, top_p=0.5, seed=1), Sampling(temperature=1, seed=2)]
    assert sample(rows, [mine, *others], [7, 1, 2, 3])[0] == alone
    assert sample(rows.flip(0), [*others, mine], [1, 2, 3, 7])[3] == alone


def test_another_seed_or_position_gives_other_tokens() -> None:
    rows = torch.zeros(1, VOCABULARY)
    by_seed = {sample(rows, [Sampling(temperature=1, seed=seed)], [0])[0] for seed in range(30)}
    by_position = {sample(rows, [Sampling(temperature=1)], [position])[0] for position in range(30)}
    assert len(by_seed) > 15
    assert len(by_position) > 15


@settings(deadline=None)
@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**20))
def test_a_uniform_number_is_below_one(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


def test_a_tiny_temperature_is_greedy_and_no_overflow() -> None:
    rows = logits() * 100
    assert sample(rows, [Sampling(temperature=1e-6)], [0]) == rows.argmax(-1).tolist()


def test_a_row_that_is_not_a_number_is_none_and_its_neighbours_are_not() -> None:
    rows = logits(3)
    rows[1] = float("nan")
    tokens = sample(rows, [Sampling(temperature=1), Sampling(temperature=1), Sampling(temperature=0)], [1, 1, 1])
    assert tokens[1] is None
    assert tokens[0] is not None
    assert tokens[2] == int(rows[2].argmax())
