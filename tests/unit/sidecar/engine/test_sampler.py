"""Tokens are drawn from the right distribution, by a number that depends on seed and position alone."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sidecar.engine.sampler import Row, score, uniform
from sidecar.engine.sampler import sample as pick
from sidecar.wire.frames import Sampling

VOCABULARY = 50
DEFAULTS = msgspec.to_builtins(Sampling())
DRAWS = 4000


def sample(rows: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int | None]:
    made = [Row(how, [0] * length, length) for how, length in zip(samplings, positions, strict=True)]
    return [picked.token for picked in pick(rows, made)]


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(row: torch.Tensor, sampling: Sampling, tokens: list[int] | None = None) -> dict[int, float]:
    """How often each token comes, over many seeds."""
    rows = row.expand(DRAWS, -1)
    said = tokens or []
    made = [Row(msgspec.structs.replace(sampling, seed=seed), said, 0) for seed in range(DRAWS)]
    return {int(one or 0): times / DRAWS for one, times in Counter(p.token for p in pick(rows, made)).items()}


def expected(row: torch.Tensor, sampling: Sampling, tokens: list[int] | None = None) -> torch.Tensor:
    """The distribution by Transformers' own processors, and OpenAI's formula where it has none."""
    scores = row.double().clone()
    said = torch.tensor([tokens or []], dtype=torch.long)
    for token, bias in sampling.logit_bias.items():
        scores[0, token] += bias
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    scores = processors(said, scores)
    for token, times in Counter(said[0].tolist()).items():
        scores[0, token] -= sampling.presence_penalty + times * sampling.frequency_penalty
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    found: torch.Tensor = processors(said, scores)
    return found[0].softmax(-1)


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
        Sampling(temperature=1.5, min_p=0.1),
        Sampling(temperature=1.2, top_k=20, top_p=0.9, min_p=0.05),
        Sampling(temperature=1, repetition_penalty=1.7),
        Sampling(temperature=1, presence_penalty=1.5, frequency_penalty=0.5),
        Sampling(temperature=0.8, logit_bias={3: 4.0, 8: -100.0, 40: 2.5}),
        Sampling(temperature=1, top_p=0.9, repetition_penalty=0.8, frequency_penalty=-0.4, logit_bias={1: 3.0}),
    ],
    ids=lambda sampling: ", ".join(f"{k} {v}" for k, v in msgspec.to_builtins(sampling).items() if v != DEFAULTS[k]),
)
def test_a_token_comes_as_often_as_transformers_would_have_it(sampling: Sampling) -> None:
    row = logits()
    said = [4, 9, 9, 30, 31, 9]
    seen, wanted = frequencies(row, sampling, said), expected(row, sampling, said)
    for token in range(VOCABULARY):
        assert seen.get(token, 0.0) == pytest.approx(float(wanted[token]), abs=0.035)
    assert set(seen) <= {token for token in range(VOCABULARY) if wanted[token] > 0}


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


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**20))
def test_a_uniform_number_is_below_one(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 7}, {"top_p": 0.9, "top_k": 70}, {"min_p": 0.1}])
def test_a_tiny_temperature_is_greedy_and_no_overflow(temperature: float, filters: dict[str, float]) -> None:
    rows = torch.randn(1, 300, generator=torch.Generator().manual_seed(2)) * 100
    how = msgspec.convert({"temperature": temperature, **filters}, Sampling)
    assert sample(rows, [how] * 1, [0]) == rows.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [1e-45, 1e38])
@pytest.mark.parametrize("how", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.9)], ids=["0", "1", "top_p"])
def test_no_repetition_penalty_makes_an_infinity(how: Sampling, penalty: float) -> None:
    row = torch.tensor([[1e5, 2e5, -1e5, 3.0]])
    changed = msgspec.structs.replace(how, repetition_penalty=penalty)
    (picked,) = pick(row, [Row(changed, [1, 2], 0)])
    assert picked.token == (1 if penalty < 1 else 0)


@pytest.mark.parametrize("spoiled", [[float("nan")], [float("inf")], [float("nan")] * VOCABULARY])
def test_a_row_that_is_not_finite_is_none_and_its_neighbours_are_not(spoiled: list[float]) -> None:
    rows = logits(3)
    rows[1, : len(spoiled)] = torch.tensor(spoiled)
    tokens = sample(rows, [Sampling(temperature=1), Sampling(temperature=1), Sampling(temperature=0)], [1, 1, 1])
    assert tokens[1] is None
    assert tokens[0] is not None
    assert tokens[2] == int(rows[2].argmax())


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 70]),
    min_p=st.sampled_from([0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.6]),
    min_tokens=st.sampled_from([0, 4]),
    end_token_ids=st.just([2, 299]),
    allowed_token_ids=st.sampled_from([[], [1, 2, 3, 40, 299], list(range(150))]),
    bad_words=st.sampled_from([[], [[1], [3, 40], [3, 3, 3, 7], [4, 40]]]),
    seed=st.integers(0, 99),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(SAMPLINGS, st.lists(st.integers(0, 299), max_size=6)), min_size=1, max_size=8), st.data())
def test_no_row_knows_of_its_neighbours(wanted: list[tuple[Sampling, list[int]]], data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    scores = torch.randn(len(wanted), 300, generator=generator) * 3
    rows = [Row(sampling, said, 0, logprobs=len(said) or None) for sampling, said in wanted]
    together = pick(scores, rows)
    assert together == [pick(scores[at : at + 1], [row])[0] for at, row in enumerate(rows)]


def test_a_token_that_the_model_rules_out_is_never_picked() -> None:
    row = torch.full((1, 9), float("-inf"))
    row[0, 4] = -2.0
    for how in (Sampling(), Sampling(top_p=0.5), Sampling(top_k=3), Sampling(min_p=0.1), Sampling(temperature=0)):
        assert {sample(row, [how], [position])[0] for position in range(20)} == {4}
    assert sample(torch.full((1, 9), float("-inf")), [Sampling()], [0]) == [None]


def test_greedy_with_a_bias_or_a_penalty_takes_the_changed_maximum() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 5], row[0, 6] = 3.0, 2.0
    assert sample(row, [Sampling(temperature=0, logit_bias={7: 50.0})], [1]) == [7]
    (picked,) = pick(row, [Row(Sampling(temperature=0, presence_penalty=1.5), [5], 0)])
    assert picked.token == 6
    # A prompt's tokens are not what the answer has said.
    (picked,) = pick(row, [Row(Sampling(temperature=0, presence_penalty=1.5), [5], 1)])
    assert picked.token == 5
    (picked,) = pick(row, [Row(Sampling(temperature=0, repetition_penalty=2.0), [5], 1)])
    assert picked.token == 6
    # A guess counts as said.
    (picked,) = pick(row, [Row(Sampling(temperature=0, presence_penalty=1.5), [], 0, draft=(5,))])
    assert picked.token == 6


@settings(max_examples=40)
@given(SAMPLINGS, st.lists(st.sampled_from([3, 4, 40, 299]), max_size=6), st.integers(0, 6), st.data())
def test_what_is_forbidden_is_as_if_the_model_ruled_it_out(
    how: Sampling, said: list[int], prompt: int, data: st.DataObject
) -> None:
    scores = torch.randn(1, 300, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    # As likely as they can be.
    scores[0, how.end_token_ids] = 20.0
    prompt = min(prompt, len(said))
    cut = data.draw(st.integers(prompt, len(said)))
    row = Row(how, said[:cut], prompt, draft=tuple(said[cut:]))
    (picked,) = pick(scores, [row])
    answer = said[prompt:]
    ruled_out = torch.zeros(300, dtype=torch.bool)
    if how.allowed_token_ids:
        ruled_out.fill_(True)[how.allowed_token_ids] = False
    if len(said) - prompt < how.min_tokens:
        ruled_out[how.end_token_ids] = True
    for word in how.bad_words:
        if [*answer, word[-1]][-len(word) :] == word:
            ruled_out[word[-1]] = True
    scores[0, ruled_out] = float("-inf")
    assert picked.token is not None
    assert not ruled_out[picked.token]
    unbound = msgspec.structs.replace(how, min_tokens=0, allowed_token_ids=[], bad_words=[])
    assert pick(scores, [Row(unbound, said, prompt)])[0] == picked


def test_a_bias_or_a_penalty_does_not_bring_back_what_is_forbidden() -> None:
    row = torch.tensor([[4.0, 3.0, -2.0]])
    ends = {"min_tokens": 1, "end_token_ids": [0], "temperature": 0}
    others = {"allowed_token_ids": [1, 2], "temperature": 0}
    for change in ({"logit_bias": {0: 100.0}}, {"repetition_penalty": 0.1}, {"frequency_penalty": -2.0}):
        how = msgspec.convert({**ends, **change}, Sampling)
        (first,) = pick(row, [Row(how, [0], 1, logprobs=3)])
        (second,) = pick(row, [Row(how, [0, 2], 1)])
        assert (first.token, second.token) == (1, 0)
        (picked,) = pick(row, [Row(msgspec.convert({**others, **change}, Sampling), [0], 1)])
        assert picked.token == 1
        # What is told is what the model said.
        assert first.logprobs is not None
        assert first.logprobs.top_ids == [0, 1, 2]


def test_a_bad_word_is_not_completed_where_its_beginning_was_said() -> None:
    row = torch.tensor([[0.0, 2.0, 1.0, 3.0]])
    how = Sampling(temperature=0, bad_words=[[1, 2, 3]])
    for tokens, prompt, draft, token in [
        ([1, 2], 0, (), 1),
        ([1], 0, (2,), 1),
        ([0, 0], 2, (1, 2), 1),
        # The prompt is nothing that was said, and a word may begin or go on otherwise.
        ([1, 2], 1, (), 3),
        ([1, 2], 2, (), 3),
        ([2, 1], 0, (), 3),
        ([1, 2, 0], 0, (), 3),
        ([1, 2], 0, (0,), 3),
    ]:
        assert pick(row, [Row(how, tokens, prompt, draft)])[0].token == token


def test_where_nothing_is_left_nothing_is_picked() -> None:
    forbids = {"min_tokens": 1, "end_token_ids": [0, 1]}
    for how in ({"temperature": 0}, {"temperature": 1}, {"temperature": 1, "top_p": 0.5}):
        none, one = pick(
            torch.zeros(2, 2), [Row(msgspec.convert({**forbids, **how}, Sampling), [], 0), Row(Sampling(), [], 0)]
        )
        assert none.token is None
        assert one.token is not None


def test_each_row_has_its_own_bias_and_penalties() -> None:
    row = torch.tensor([4.0, 3.0, 2.0, 1.0])
    ways = [
        (Sampling(temperature=0), [0], 0),
        (Sampling(temperature=0, presence_penalty=1.5), [0, 0], 1),
        (Sampling(temperature=0, frequency_penalty=0.4), [0, 0], 0),
        (Sampling(temperature=0, frequency_penalty=0.6), [0, 0], 1),
        (Sampling(temperature=0, frequency_penalty=0.6, presence_penalty=2.0), [0, 1], 2),
        (Sampling(temperature=0, repetition_penalty=1.2), [0], 0),
        (Sampling(temperature=0, repetition_penalty=5.0), [0, 1], 2),
        (Sampling(temperature=0, logit_bias={3: 2.5}), [], 0),
        (Sampling(temperature=0, logit_bias={3: 3.5}), [], 3),
        (Sampling(temperature=0, logit_bias={0: -9.0, 1: -9.0}), [], 2),
    ]
    rows = [Row(how, said, 0) for how, said, _ in ways]
    picked = pick(row.expand(len(rows), -1), rows)
    assert [one.token for one in picked] == [token for _, _, token in ways]


def test_many_given_tokens_are_scored_each_by_its_own_row() -> None:
    rows = logits(40)
    tokens = [at * 7 % VOCABULARY for at in range(40)]
    wanted = rows.log_softmax(-1)
    for most in (0, 3):
        scores = score(rows, tokens, most)
        assert [one.token for one in scores] == pytest.approx(wanted[range(40), tokens].tolist(), abs=1e-5)
        assert [one.top_ids for one in scores] == wanted.topk(most).indices.tolist()


def test_log_probabilities_are_of_the_unchanged_logits() -> None:
    rows = logits(3)
    how = Sampling(temperature=0.3, top_k=2, logit_bias={0: 9.0})
    made = [Row(how, [], 0, logprobs=2), Row(how, [], 0), Row(how, [], 0, logprobs=0)]
    first, second, third = pick(rows, made)
    wanted = rows.log_softmax(-1)
    assert first.logprobs is not None
    assert first.logprobs.token == pytest.approx(float(wanted[0, first.token]), abs=1e-5)
    best, ids = wanted[0].topk(2)
    assert first.logprobs.top_ids == ids.tolist()
    assert first.logprobs.top == pytest.approx(best.tolist(), abs=1e-5)
    assert second.logprobs is None
    assert third.logprobs is not None
    assert third.logprobs.top_ids == []
