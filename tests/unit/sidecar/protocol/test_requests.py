"""The seeds of a request's choices: repeatable where the client gave one, never shared between choices."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.requests import choice_seeds


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 16))
def test_a_seed_gives_the_same_distinct_unsigned_seeds(seed: int, count: int) -> None:
    seeds = choice_seeds(seed, count)
    assert seeds == choice_seeds(seed, count)
    assert len(set(seeds)) == count
    assert all(0 <= one < 2**64 for one in seeds)


@given(st.integers(-(2**63), 2**63 - 1))
def test_asking_for_more_choices_does_not_change_the_first(seed: int) -> None:
    assert choice_seeds(seed, 3)[:2] == choice_seeds(seed, 2)


def test_without_a_seed_no_two_requests_are_alike() -> None:
    assert choice_seeds(None, 1) != choice_seeds(None, 1)
