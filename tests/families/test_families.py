"""Every family runs on the tier it is promised, and its answers are those of `generate`, however they are computed."""

from dataclasses import dataclass

import pytest
import torch

from sidecar.engine import loader
from sidecar.engine.config import EngineConfig
from sidecar.engine.loader import Loaded
from sidecar.engine.prefix_cache import PrefixCache
from tests.fakes.families import CONTEXT, FAMILIES, VOCABULARY, Family, build
from tests.fakes.steps import Bench, generate

# As in tests/unit/sidecar/engine: small tensors on a busy machine.
torch.set_num_threads(1)

PROMPTS = [
    [3, 14, 15, 92, 65],
    [35] * 3 + list(range(20, 60)),
    [7],
    list(range(100, 119)),
    [9, 8, 7, 6, 5, 4, 3, 9, 8, 7],
    [(17 * n + 5) % VOCABULARY for n in range(100)],
]
LOGPROB_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """A family's model, loaded, and what `generate` answers to each prompt: tokens and their log-probabilities."""

    family: Family
    loaded: Loaded
    wanted: list[list[int]]
    logprobs: list[list[float]]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: Family = request.param
    folder = tmp_path_factory.mktemp("family")
    stock = build(family, folder)
    generated = [generate(stock, prompt) for prompt in PROMPTS]
    config = EngineConfig(
        model_path=str(folder),
        slots_path=str(folder / "slots"),
        precision="fp32",
        device="cpu",
        max_sequences=16,
        step_token_budget=16,
        max_context=CONTEXT,
        kv_tokens=2000,
        threads=None,
    )
    return Case(family, loader.load(config), [tokens for tokens, _ in generated], [logs for _, logs in generated])


def test_it_runs_on_the_tier_it_is_promised(case: Case) -> None:
    assert case.loaded.tier.name == case.family.tier
    assert case.loaded.parity <= LOGPROB_TOLERANCE
    # An answer that is always the same would prove nothing.
    assert len({token for answer in case.wanted for token in answer}) >= 8


@pytest.mark.parametrize("budget", [200, 23], ids=["whole", "in chunks"])
def test_answers_and_log_probabilities_are_those_of_generate(case: Case, budget: int) -> None:
    bench = Bench(case.loaded, budget=budget, capacity=2000)
    assert bench.answers(PROMPTS) == case.wanted
    for name, wanted in enumerate(case.logprobs):
        ours = [found.token for found in bench.logprobs[str(name)]]
        assert max(abs(one - other) for one, other in zip(ours, wanted, strict=True)) <= LOGPROB_TOLERANCE


def test_alone_and_among_sixteen_it_answers_the_same(case: Case) -> None:
    assert [Bench(case.loaded, capacity=2000).answers([prompt])[0] for prompt in PROMPTS] == case.wanted
    many = [PROMPTS[n % len(PROMPTS)] for n in range(16)]
    found = Bench(case.loaded, budget=64, capacity=2000).answers(many)
    assert found == [case.wanted[n % len(PROMPTS)] for n in range(16)]


def test_preempted_it_answers_the_same(case: Case) -> None:
    # Room for all prompts, and for less than half of the answers.
    bench = Bench(case.loaded, budget=128, capacity=100)
    assert bench.answers(PROMPTS[:5]) == case.wanted[:5]
    assert bench.scheduler.preemptions > 0


def test_with_guesses_it_answers_the_same(case: Case) -> None:
    if case.loaded.tier.name != "packed":
        pytest.skip("only the packed tier guesses")
    repeating = [[5, 6, 7, 8] * 6, [9, 8, 7] * 9]
    alone = [Bench(case.loaded, budget=64).answers([prompt])[0] for prompt in repeating]
    assert [Bench(case.loaded, budget=64, speculation=4).answers([prompt])[0] for prompt in repeating] == alone


def test_from_the_prefix_cache_it_answers_the_same(case: Case) -> None:
    store = case.loaded.runner.forward.store
    if store is None:
        pytest.skip("only the packed tier has a prefix cache")
    store.reserve(8)
    prefixes = PrefixCache(8)
    prompt, wanted = PROMPTS[-1], case.wanted[-1]
    cold = Bench(case.loaded, budget=200, prefixes=prefixes)
    assert cold.answers([prompt]) == [wanted]
    warm = Bench(case.loaded, budget=200, prefixes=prefixes)
    assert warm.answers([prompt]) == [wanted]
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 64)


def test_what_is_kept_of_a_prompt_that_was_given_up_halfway_is_what_was_computed(case: Case) -> None:
    store = case.loaded.runner.forward.store
    if store is None:
        pytest.skip("only the packed tier has a prefix cache")
    store.reserve(8)
    bench = Bench(case.loaded, budget=16, prefixes=PrefixCache(8))
    prompt, wanted = PROMPTS[-1], case.wanted[-1]
    bench.leave(prompt, after=64)
    assert bench.answers([prompt]) == [wanted]
    assert bench.cached_tokens == 64
