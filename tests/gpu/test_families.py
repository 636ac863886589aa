"""On a GPU in fp32 every family runs on the tier it is promised, and answers as `generate` does on the same GPU."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.engine import loader
from sidecar.engine.config import EngineConfig
from sidecar.engine.graphs import GraphedNetwork
from sidecar.engine.loader import Loaded
from sidecar.engine.prefix_cache import PrefixCache
from tests.fakes.families import CONTEXT, FAMILIES, VOCABULARY, Family, build
from tests.fakes.steps import Bench, generate

PROMPTS = [
    [3, 14, 15, 92, 65],
    [35] * 3 + list(range(20, 60)),
    [7],
    list(range(100, 119)),
    [(17 * n + 5) % VOCABULARY for n in range(100)],
]
LOGPROB_TOLERANCE = 1e-3
EXPERTS = ("qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v2", "deepseek_v3")


@dataclass(frozen=True)
class Case:
    """A family's model, loaded, and what `generate` answers to each prompt: tokens and their log-probabilities."""

    family: Family
    loaded: Loaded
    wanted: list[list[int]]
    logprobs: list[list[float]]


def config_for(folder: Path, precision: str = "fp32") -> EngineConfig:
    return EngineConfig(
        model_path=str(folder),
        slots_path=str(folder / "slots"),
        precision=precision,
        device="cuda",
        max_sequences=16,
        step_token_budget=64,
        max_context=CONTEXT,
        kv_tokens=2000,
        threads=None,
    )


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: Family = request.param
    folder = tmp_path_factory.mktemp("family")
    stock = build(family, folder).to("cuda")
    generated = [generate(stock, prompt) for prompt in PROMPTS]
    config = config_for(folder)
    return Case(family, loader.load(config), [tokens for tokens, _ in generated], [logs for _, logs in generated])


def test_it_runs_on_the_tier_it_is_promised(case: Case) -> None:
    assert case.loaded.tier.name == case.family.tier
    assert case.loaded.parity <= LOGPROB_TOLERANCE
    if case.family.tier == "packed":
        assert case.loaded.tier.steps_down == ()
        network = case.loaded.tier.network
        assert isinstance(network, GraphedNetwork)
        # Transformers loops over experts in fp32, and counts on the CPU how many tokens each has.
        assert bool(network.off) == (case.family.model_type in EXPERTS)


@pytest.mark.parametrize("name", EXPERTS)
def test_in_16_bits_a_mixture_of_experts_is_recorded(name: str, tmp_path: Path) -> None:
    (family, *_) = (family for family in FAMILIES if family.model_type == name)
    build(family, tmp_path)
    loaded = loader.load(config_for(tmp_path, "bf16"))
    network = loaded.tier.network
    assert isinstance(network, GraphedNetwork)
    assert (loaded.tier.name, network.off) == ("packed", "")
    many = Bench(loaded, budget=200, capacity=2000).answers(PROMPTS)
    assert Bench(loaded, budget=200, capacity=2000).answers(PROMPTS) == many
    assert network.off == ""
    assert network._graphs


@pytest.mark.parametrize("budget", [200, 23], ids=["whole", "in chunks"])
def test_answers_and_log_probabilities_are_those_of_generate(case: Case, budget: int) -> None:
    bench = Bench(case.loaded, budget=budget, capacity=2000)
    assert bench.answers(PROMPTS) == case.wanted
    for name, wanted in enumerate(case.logprobs):
        ours = [found.token for found in bench.logprobs[str(name)]]
        assert max(abs(one - other) for one, other in zip(ours, wanted, strict=True)) <= LOGPROB_TOLERANCE


def test_alone_among_sixteen_and_preempted_it_answers_the_same(case: Case) -> None:
    assert [Bench(case.loaded, capacity=2000).answers([prompt])[0] for prompt in PROMPTS] == case.wanted
    many = [PROMPTS[n % len(PROMPTS)] for n in range(16)]
    found = Bench(case.loaded, budget=64, capacity=2000).answers(many)
    assert found == [case.wanted[n % len(PROMPTS)] for n in range(16)]
    tight = Bench(case.loaded, budget=128, capacity=100)
    assert tight.answers(PROMPTS[:4]) == case.wanted[:4]


def test_guessed_and_from_the_prefix_cache_it_answers_the_same(case: Case) -> None:
    store = case.loaded.runner.forward.store
    if store is None:
        pytest.skip("only the packed tier guesses and has a prefix cache")
    assert Bench(case.loaded, budget=64, speculation=4, capacity=2000).answers(PROMPTS[1:2]) == case.wanted[1:2]
    store.reserve(8)
    prefixes = PrefixCache(8)
    for cached in (0, 64):
        bench = Bench(case.loaded, budget=200, prefixes=prefixes, capacity=2000)
        assert bench.answers([PROMPTS[-1]]) == case.wanted[-1:]
        assert bench.cached_tokens == cached
