"""What was computed once is found again by who may, and what was used last stays longest."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.engine.prefix_cache import BLOCK_TOKENS, Pair, PrefixCache


def text(*blocks: int, tail: int = 0) -> list[int]:
    """A block of equal tokens for each number, and a few more."""
    return [token for block in blocks for token in [block] * BLOCK_TOKENS] + [999] * tail


def blocks(pairs: tuple[Pair, ...]) -> list[int]:
    return [pair.block for pair in pairs]


def test_what_was_kept_is_found_up_to_where_the_texts_part() -> None:
    cache = PrefixCache(8)
    kept = cache.insert("a", text(1, 2, 3, tail=5))
    assert [pair.place for pair in kept] == [0, 1, 2]
    assert len(set(blocks(kept))) == 3
    assert cache.match("a", text(1, 2, 4, tail=9)) == kept[:2]
    assert cache.match("a", text(4, 2, 3, tail=9)) == ()
    assert cache.held_tokens == 3 * BLOCK_TOKENS


def test_a_block_is_not_found_behind_another_beginning() -> None:
    cache = PrefixCache(8)
    cache.insert("a", text(1, 2))
    cache.insert("a", text(3))
    assert len(cache.match("a", text(3, 2, tail=1))) == 1


def test_a_token_at_least_is_left_to_compute() -> None:
    cache = PrefixCache(8)
    cache.insert("a", text(1, 2))
    assert len(cache.match("a", text(1, 2))) == 1
    assert len(cache.match("a", text(1, 2, tail=1))) == 2
    assert cache.match("a", []) == ()


def test_a15_another_scope_finds_nothing_and_keeps_its_own() -> None:
    cache = PrefixCache(8)
    ours = cache.insert("a:1", text(1, 2))
    assert cache.match("a:2", text(1, 2, tail=1)) == ()
    assert cache.match("", text(1, 2, tail=1)) == ()
    theirs = cache.insert("a:2", text(1, 2))
    assert not set(blocks(ours)) & set(blocks(theirs))
    assert cache.match("a:1", text(1, 2, tail=1)) == ours


def test_only_what_is_new_is_copied() -> None:
    cache = PrefixCache(8)
    first = cache.insert("a", text(1, 2))
    assert cache.insert("a", text(1, 2, tail=60)) == ()
    (third,) = cache.insert("a", text(1, 2, 3))
    assert third.place == 2
    assert third.block not in blocks(first)


def test_the_least_recently_used_goes_and_its_end_before_its_beginning() -> None:
    cache = PrefixCache(4)
    cache.insert("a", text(1, 2))
    cache.insert("a", text(3, 4))
    cache.match("a", text(1, 2, tail=1))
    cache.insert("a", text(5))
    assert [len(cache.match("a", text(*one, tail=1))) for one in ((1, 2), (3, 4), (5,))] == [2, 1, 1]
    cache.insert("a", text(6, 7))
    assert [len(cache.match("a", text(*one, tail=1))) for one in ((1, 2), (3, 4), (5,), (6, 7))] == [0, 1, 1, 2]


def test_a_text_longer_than_the_cache_keeps_its_beginning() -> None:
    cache = PrefixCache(2)
    cache.insert("a", text(8, 9))
    pairs = cache.insert("a", text(1, 2, 3, 4))
    assert [pair.place for pair in pairs] == [0, 1]
    assert len(cache.match("a", text(1, 2, 3, 4, tail=1))) == 2
    assert cache.insert("a", text(1, 2, 3, 4)) == ()


def test_a_text_that_grows_does_not_write_over_its_own_beginning() -> None:
    cache = PrefixCache(3)
    cache.insert("a", text(1, 2))
    cache.insert("a", text(3))
    assert [pair.place for pair in cache.insert("a", text(1, 2, 4, 5))] == [2]
    assert len(cache.match("a", text(1, 2, 4, 5, tail=1))) == 3


def test_what_may_be_wrong_is_forgotten_with_all_that_stands_on_it() -> None:
    cache = PrefixCache(8)
    cache.insert("a", text(1, 2, 3))
    cache.insert("a", text(1, 4))
    cache.insert("a", text(5))
    cache.forget("a", text(1, 9))
    assert cache.match("a", text(1, 2, 3, tail=1)) == cache.match("a", text(1, 4, tail=1)) == ()
    assert len(cache.match("a", text(5, tail=1))) == 1
    assert cache.held_tokens == BLOCK_TOKENS
    # All are free again.
    assert len(cache.insert("a", text(*range(10, 17)))) == 7


@settings(max_examples=200)
@given(
    size=st.integers(1, 6),
    moves=st.lists(
        st.tuples(
            st.sampled_from(["insert", "match", "forget"]),
            st.sampled_from("xy"),
            st.lists(st.integers(0, 2), max_size=5),
        ),
        max_size=40,
    ),
)
def test_a_block_stands_for_one_text_and_whatever_is_found_was_copied_there(
    size: int, moves: list[tuple[str, str, list[int]]]
) -> None:
    cache = PrefixCache(size)
    written: dict[int, tuple[str, tuple[int, ...]]] = {}
    for move, scope, told in moves:
        tokens = text(*told, tail=1)
        if move == "insert":
            for pair in cache.insert(scope, tokens):
                written[pair.block] = (scope, tuple(told[: pair.place + 1]))
        elif move == "forget":
            cache.forget(scope, tokens)
        else:
            for place, pair in enumerate(cache.match(scope, tokens)):
                assert pair.place == place
                assert written[pair.block] == (scope, tuple(told[: place + 1]))
        assert 0 <= cache.held_tokens <= size * BLOCK_TOKENS
        assert set(written) <= set(range(size))
