"""Tokens become text piece by piece: the pieces make the whole, and no stop string gets through."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sidecar.tokenizer.text import REPLACEMENT, Detokenizer, StopScanner

SPECIAL = frozenset({0, 1, 2})


def detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    return Detokenizer(lambda ids: tokenizer.decode(ids, skip_special_tokens=False), SPECIAL)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    fed = detokenizer(tokenizer)
    return [*(fed.feed(token) for token in ids), fed.flush()]


@given(st.text(max_size=200))
def test_pieces_of_a_text_make_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    plain = [token for token in ids if token not in SPECIAL]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(plain, skip_special_tokens=False)


@given(st.text(min_size=1, max_size=40).filter(lambda text: REPLACEMENT not in text))
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = [token for token in tokenizer.encode(text).ids if token not in SPECIAL]
    assert all(REPLACEMENT not in piece for piece in pieces(tokenizer, ids))


@given(st.lists(st.integers(3, 399), max_size=150))
def test_any_tokens_give_text_that_never_goes_back(tokenizer: Tokenizer, ids: list[int]) -> None:
    ids = [token for token in ids if token < tokenizer.get_vocab_size()]
    joined = "".join(pieces(tokenizer, ids))
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    # Bytes that make no character may become more or fewer U+FFFD when they come in pieces; the rest is the same.
    assert joined.replace(REPLACEMENT, "") == whole.replace(REPLACEMENT, "")


def test_a_character_of_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🐙").ids
    assert len(ids) > 1
    assert pieces(tokenizer, ids) == [""] * (len(ids) - 1) + ["🐙", ""]


def test_what_is_left_of_a_broken_character_comes_at_the_end(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("🐙").ids[0]
    fed = detokenizer(tokenizer)
    assert fed.feed(first) == ""
    assert fed.flush() == REPLACEMENT
    assert fed.flush() == ""


@given(st.text(max_size=60), st.text(max_size=60))
@example("\ufffd", "0")
@example("\ufffd", "\ufffd")
@example("a\ufffd", "🐙")
def test_a_text_that_continues_another_is_the_rest_of_both(tokenizer: Tokenizer, before: str, text: str) -> None:
    ids = tokenizer.encode(text).ids
    fed = Detokenizer(
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False), SPECIAL, tokenizer.encode(before).ids
    )
    assert "".join([*map(fed.feed, ids), fed.flush()]) == "".join(pieces(tokenizer, ids))


def test_a_text_that_begins_within_a_character_begins_with_that_character(tokenizer: Tokenizer) -> None:
    whole = "a🐙b€"
    ids = tokenizer.encode(whole).ids

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    for cut in range(len(ids)):
        fed = Detokenizer(decode, SPECIAL, ids[:cut])
        rest = "".join([*map(fed.feed, ids[cut:]), fed.flush()])
        assert decode(ids[:cut]).rstrip(REPLACEMENT) + rest == whole


def test_a_decoder_that_drops_the_first_space_keeps_it_in_a_text_that_goes_on() -> None:
    def words(ids: list[int]) -> str:
        return "".join([" and", " on", " 🙂"][token] for token in ids).removeprefix(" ")

    assert Detokenizer(words, frozenset()).feed(1) == "on"
    assert Detokenizer(words, frozenset(), [0] * 50).feed(1) == " on"
    # What is skipped is nothing to go on from.
    assert Detokenizer(words, frozenset({0}), [0]).feed(1) == "on"


def test_a_character_that_the_text_before_leaves_open_is_shown_once_it_is_whole() -> None:
    first, second = "é".encode()
    fed = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"), frozenset(), [97, first])
    assert fed.feed(second) == "é"


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat").ids
    assert pieces(tokenizer, [1, *ids, 0]) == ["", *pieces(tokenizer, ids)[:-1], "", ""]


def test_the_cost_of_a_token_does_not_grow(tokenizer: Tokenizer) -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids, skip_special_tokens=False)

    fed = Detokenizer(decode, SPECIAL)
    text = "".join(fed.feed(token) for token in tokenizer.encode("the cat sat on the mat. " * 200).ids) + fed.flush()
    assert text == "the cat sat on the mat. " * 200
    assert longest <= 25


def scanned(pieces: list[str], stops: tuple[str, ...], *, shown_too: bool = False) -> tuple[str, bool]:
    scanner = StopScanner(stops, shown=shown_too)
    shown = ""
    for piece in pieces:
        text, stopped = scanner.feed(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + scanner.flush(), False


letters = st.text(alphabet="ab.", min_size=1, max_size=4)


@given(st.lists(st.text(alphabet="ab.", max_size=3), max_size=12), st.lists(letters, min_size=1, max_size=4))
def test_what_is_shown_ends_where_the_first_stop_string_to_be_complete_begins(
    parts: list[str], stops: list[str]
) -> None:
    shown, stopped = scanned(parts, tuple(stops))
    whole = ""
    for part in parts:
        whole += part
        found = [(start := whole.find(stop), start + len(stop)) for stop in stops if stop in whole]
        if found:
            start, end = min(found)
            assert (shown, stopped) == (whole[:start], True)
            assert scanned(parts, tuple(stops), shown_too=True) == (whole[:end], True)
            return
    assert (shown, stopped) == (whole, False)
    assert scanned(parts, tuple(stops), shown_too=True) == (whole, False)


@given(st.lists(st.text(alphabet="ab.", max_size=3), max_size=12), st.lists(letters, min_size=1, max_size=4))
def test_nothing_is_shown_that_may_yet_be_a_stop_string(parts: list[str], stops: list[str]) -> None:
    scanner = StopScanner(tuple(stops))
    shown = whole = ""
    for part in parts:
        text, stopped = scanner.feed(part)
        shown += text
        whole += part
        if stopped:
            break
        held = whole[len(shown) :]
        assert whole == shown + held
        # Nothing is held without need, and nothing that is needed is shown.
        assert held == "" or any(stop.startswith(held) for stop in stops)
        assert not any(
            stop.startswith(whole[at:]) for stop in stops for at in range(max(0, len(shown) - 4), len(shown))
        )


@given(
    st.lists(st.text(alphabet="ab.", max_size=3), max_size=12),
    st.lists(letters, min_size=1, max_size=4),
    st.integers(0, 12),
)
def test_a_stop_string_that_ends_too_early_is_text(parts: list[str], stops: list[str], early: int) -> None:
    scanner = StopScanner(tuple(stops))
    shown = whole = ""
    for at, part in enumerate(parts):
        passed = len(whole)
        whole += part
        text, stopped = scanner.feed(part, may_end=at >= early)
        shown += text
        ends = [
            start
            for stop in stops
            for start in range(len(whole))
            if whole.startswith(stop, start) and start + len(stop) > passed and at >= early
        ]
        assert stopped == bool(ends)
        if stopped:
            assert shown == whole[: min(ends)]
            return
    assert shown + scanner.flush() == whole


@pytest.mark.parametrize(
    ("stops", "pieces", "found"),
    [
        (("b", "c"), ["a", "bc"], "b"),
        (("bc", "b"), ["ab"], "b"),
        (("abc", "b"), ["abc"], "abc"),
        (("END",), ["aE", "ND"], "END"),
        (("x",), ["abc"], None),
    ],
)
def test_the_stop_string_that_was_completed_is_told(
    stops: tuple[str, ...], pieces: list[str], found: str | None
) -> None:
    scanner = StopScanner(stops)
    for piece in pieces:
        scanner.feed(piece)
    assert scanner.found == found


def test_without_stop_strings_text_passes_at_once() -> None:
    scanner = StopScanner(())
    assert scanner.feed("abc") == ("abc", False)
    assert scanner.flush() == ""
