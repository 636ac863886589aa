"""Over paged blocks, as a GPU has them, every family answers as `generate` does; here the blocks are in main memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sidecar.engine import parity, tiers
from sidecar.engine.graphs import GraphedNetwork
from sidecar.engine.model_runner import ModelRunner
from sidecar.engine.paged_cache import PagedCache
from sidecar.engine.prefix_cache import PrefixCache
from tests.fakes.families import CONTEXT, FAMILIES, VOCABULARY, Family, build
from tests.fakes.steps import Bench, generate

torch.set_num_threads(1)

PROMPTS = [[3, 14, 15, 92, 65], [35] * 3 + list(range(20, 60)), [7], [(17 * n + 5) % VOCABULARY for n in range(100)]]


def record_nothing(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
    """What a CUDA graph does, with the function in the place of the recording."""
    out = function().clone()

    def replay() -> None:
        out.copy_(function())

    return out, replay


@dataclass(frozen=True)
class Loaded:
    runner: ModelRunner
    tier: tiers.Tier


@dataclass(frozen=True)
class Case:
    loaded: Loaded
    wanted: list[list[int]]


PAGED = [family for family in FAMILIES if family.tier == "packed"]


@pytest.fixture(scope="module", params=PAGED, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: Family = request.param
    folder: Path = tmp_path_factory.mktemp("paged")
    stock = build(family, folder)
    wanted = [generate(stock, prompt)[0] for prompt in PROMPTS]
    references = parity.references(stock, folder)
    ways = tiers.ways_over_blocks(16, CONTEXT, "cpu", kernel=None, recorder=record_nothing, tolerance=parity.TOLERANCE)
    tier = tiers.choose(lambda: stock, ways, references)
    tier.forward.keep(2000)
    return Case(Loaded(ModelRunner(tier.forward), tier), wanted)


def cache_of(case: Case) -> PagedCache:
    store = case.loaded.runner.forward.store
    assert isinstance(store, PagedCache)
    return store


def test_answers_are_those_of_generate_whole_in_chunks_and_among_many(case: Case) -> None:
    for budget in (200, 23):
        assert Bench(case.loaded, budget=budget, capacity=2000).answers(PROMPTS) == case.wanted
    many = [PROMPTS[n % len(PROMPTS)] for n in range(16)]
    found = Bench(case.loaded, budget=64, capacity=2000).answers(many)
    assert found == [case.wanted[n % len(PROMPTS)] for n in range(16)]
    network = case.loaded.tier.network
    assert isinstance(network, GraphedNetwork)
    assert network.off == ""
    # Every sequence has left, and so has every block.
    cache = cache_of(case)
    assert cache.free_blocks == cache.blocks - 2


def test_preempted_guessed_and_from_the_prefix_cache_they_are_the_same(case: Case) -> None:
    bench = Bench(case.loaded, budget=128, capacity=100)
    assert bench.answers(PROMPTS[:3]) == case.wanted[:3]
    assert Bench(case.loaded, budget=64, speculation=4, capacity=2000).answers(PROMPTS[1:2]) == case.wanted[1:2]
    cache_of(case).reserve(8)
    bench = Bench(case.loaded, budget=16, prefixes=PrefixCache(8), capacity=2000)
    bench.leave(PROMPTS[3], after=64)
    # Another one takes the blocks that the one that left had.
    assert bench.answers([PROMPTS[1], PROMPTS[3]]) == [case.wanted[1], case.wanted[3]]
    assert bench.cached_tokens == 64
