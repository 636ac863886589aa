"""Filters let through what Transformers' warpers do, and a token's share of the draws is its probability."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sidecar.engine.filters import draw, log_mass, top
from sidecar.wire.frames import Sampling

# So many numbers, evenly spread over [0, 1), tell a token's probability to within two of them.
DRAWS = 2000


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(rows: int, vocabulary: int, spread: float) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread


def shares(row: torch.Tensor, sampling: Sampling) -> dict[int, float]:
    numbers = [(at + 0.5) / DRAWS for at in range(DRAWS)]
    return {
        token: times / DRAWS
        for token, times in Counter(draw(row.expand(DRAWS, -1), [sampling] * DRAWS, numbers)).items()
    }


def expected(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    found: torch.Tensor = warpers(torch.zeros(1, 0, dtype=torch.long), row.double())
    return found[0].softmax(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1, top_k=20),
        Sampling(temperature=1, top_k=150),
        Sampling(temperature=1, top_k=10**6),
        Sampling(temperature=0.6, top_p=0.5),
        Sampling(temperature=1.3, top_p=0.95),
        Sampling(temperature=1, top_p=1e-9),
        Sampling(temperature=1, top_k=50, top_p=0.9),
        Sampling(temperature=2, top_k=64, top_p=0.999),
        Sampling(temperature=2, top_k=65, top_p=0.5),
        Sampling(temperature=2, top_k=300, top_p=0.3),
        Sampling(temperature=1, min_p=0.2),
        Sampling(temperature=3, min_p=0.05),
        Sampling(temperature=2, min_p=0.1, top_p=0.98),
        Sampling(temperature=2, min_p=1.0),
        Sampling(temperature=2, top_k=200, top_p=0.97, min_p=0.1),
    ],
    ids=lambda s: f"T {s.temperature}, k {s.top_k}, p {s.top_p}, min_p {s.min_p}",
)
@pytest.mark.parametrize("vocabulary", [40, 1500])
def test_a_token_has_the_share_that_transformers_gives_it(sampling: Sampling, vocabulary: int) -> None:
    row = noise(1, vocabulary, 2.0)
    seen, wanted = shares(row, sampling), expected(row, sampling)
    assert sum(wanted[list(seen)]) == pytest.approx(1, abs=2 * (vocabulary + 2) / DRAWS)
    assert all(wanted[token] > 0 for token in seen)
    for token, probability in enumerate(wanted.tolist()):
        assert seen.get(token, 0.0) == pytest.approx(probability, abs=1.01 / DRAWS)


def test_of_tokens_that_weigh_the_same_no_more_pass_than_the_filters_say() -> None:
    flat = torch.zeros(1, 600)
    assert len(shares(flat, Sampling(top_p=0.5))) == 300
    assert len(shares(flat, Sampling(top_k=200))) == 200
    assert len(shares(flat, Sampling(top_k=200, top_p=0.25))) == 50
    assert len(shares(flat, Sampling(top_k=30, top_p=0.5))) == 15
    stairs = torch.arange(600.0)[None] // 100
    passing = shares(stairs, Sampling(temperature=100, top_k=150))
    assert len(passing) == 150
    assert sum(token >= 500 for token in passing) == 100


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=9), Sampling(top_p=0.99), Sampling(min_p=0.01)])
def test_the_ends_of_the_unit_interval_give_tokens_with_a_weight(sampling: Sampling) -> None:
    row = noise(1, 777, 3.0)
    row[0, ::2] = -torch.inf
    row[0, 700:] = -torch.inf
    for number in (0.0, 1 - 2**-53, 1.0):
        (token,) = draw(row, [sampling], [number])
        assert row[0, token] > -torch.inf


@pytest.mark.parametrize(("count", "vocabulary"), [(19, 300), (7, 40001)])
def test_no_row_knows_of_its_neighbours_on_two_threads(count: int, vocabulary: int, two_threads: None) -> None:
    rows = noise(count, vocabulary, 2.5)
    ways = [
        Sampling(temperature=0.9),
        Sampling(top_p=0.9),
        Sampling(temperature=1.4, top_p=0.97),
        Sampling(top_k=40, top_p=0.8),
        Sampling(top_k=100, top_p=0.8),
        Sampling(min_p=0.3),
    ]
    samplings = [ways[at % len(ways)] for at in range(len(rows))]
    numbers = [(at * 0.618) % 1 for at in range(len(rows))]
    alone = [draw(rows[at : at + 1], samplings[at : at + 1], numbers[at : at + 1])[0] for at in range(len(rows))]
    assert draw(rows, samplings, numbers) == alone
    assert draw(rows.flip(0), samplings[::-1], numbers[::-1]) == alone[::-1]
    # Where the mass is little more than the heaviest's, its last bits are in its logarithm.
    peaked = rows * 4 - (rows * 4).amax(-1, keepdim=True)
    assert torch.equal(log_mass(peaked), torch.cat([log_mass(row[None]) for row in peaked]))


@pytest.mark.parametrize("seed", range(8))
def test_the_last_token_is_not_passed_however_sums_are_rounded(seed: int) -> None:
    rows = torch.randn(16, 200, generator=torch.Generator().manual_seed(seed))
    assert draw(rows, [Sampling()] * 16, [1.0] * 16) == [199] * 16


def test_the_mass_makes_log_probabilities() -> None:
    rows = noise(3, 1000, 20.0)
    assert (rows - log_mass(rows) - rows.double().log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("size", [70, 4096, 4100, 17001])
def test_the_heaviest_are_found_as_by_sorting_all(size: int) -> None:
    x = noise(3, size, 1.0)
    # One of them behind the last whole block.
    x[0, -1] = 9.0
    for count in (1, 5, 64):
        values, ids = top(x, count)
        wanted = x.sort(-1, descending=True)
        assert torch.equal(values, wanted.values[:, :count])
        assert torch.equal(ids, wanted.indices[:, :count])


def test_logits_are_left_as_they_were() -> None:
    rows = noise(4, 600, 1.0)
    before = rows.clone()
    draw(rows, [Sampling(), Sampling(top_p=0.9), Sampling(top_k=90, top_p=0.5), Sampling(min_p=0.5)], [0.5] * 4)
    assert torch.equal(rows, before)
