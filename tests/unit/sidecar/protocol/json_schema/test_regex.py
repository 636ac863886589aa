"""Patterns as they are read and written anew: Python's `re` is the judge of what they match."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.json_schema.regex import RegexError
from sidecar.protocol.json_schema.regex_writing import for_answer, for_string

TEXTS = st.text(st.sampled_from('abc1 ."\\^$-]é😀\n\t'), max_size=8)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "without its"),
        ("a)", "without its"),
        ("[a", "too early"),
        ("[]", "without any character"),
        (r"[^\s\S]", "without any character"),
        ("[b-a]", "ends are wrong"),
        (r"[\d-z]", ""),
        ("*a", "nothing before"),
        ("a**", "repetition of a repetition"),
        ("a++", "repetition of a repetition"),
        ("^*", "anchor cannot be repeated"),
        ("a{2,1}", "less than its least"),
        ("a{5000}", "more than 4096"),
        ("a{x}", "no repetition"),
        ("(ab){4000}", "repeated too often"),
        ("(?=a)", "not supported"),
        ("(?!a)", "not supported"),
        ("(?<=a)b", "not supported"),
        ("(?i)a", "not supported"),
        (r"\ba", r"'\\b' is not supported"),
        (r"(a)\1", r"'\\1' is not supported"),
        (r"\p{L}", r"'\\p' is not supported"),
        (r"\x1", "hexadecimal"),
        (r"\ud800", "surrogate"),
        ("a^b", "an anchor that"),
        ("(^a)+", "an anchor that"),
        ("\\", "too early"),
        ("(" * 100 + ")" * 100, "nested too deep"),
        ("a" * 513, "512"),
    ],
)
def test_c5_what_cannot_be_followed_is_refused(pattern: str, words: str) -> None:
    if words:
        with pytest.raises(RegexError, match=words):
            for_answer(pattern)
    else:
        assert for_answer(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "a.c",
        "[^a]+",
        r"\d{2,}",
        "(ab|c)?",
        "^a|b$",
        r'["\\]',
        "(?P<name>a)b",
        r"\s\S\w\W",
        "[a-c1-]{2}",
        r"é|😀",
        r"\.\^",
    ],
)
@given(TEXTS)
def test_an_answer_matches_as_a_whole(pattern: str, text: str) -> None:
    assert bool(re.fullmatch(for_answer(pattern), text)) == bool(re.fullmatch(f"(?:{pattern})", text, re.ASCII))


@pytest.mark.parametrize("pattern", ["^a", "c$", "a.c", '^"', r"^\\", "[^a]", "^$", "", r"[\n\t]", "b+"])
@given(TEXTS)
def test_what_a_string_may_say_is_json_and_matches(pattern: str, text: str) -> None:
    written, least, most = for_string(pattern)
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    if re.fullmatch(written, escaped):
        assert re.search(pattern, text)
        assert least <= len(text) <= (len(text) if most is None else most)
    assert not re.fullmatch(written, text) or json.loads(f'"{text}"') is not None


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [("", (0, 0)), ("abc", (3, 3)), ("a{2,4}b?", (2, 5)), ("a*", (0, None)), ("^a", (1, None)), ("(ab|c){2}", (2, 4))],
)
def test_the_lengths_are_told(pattern: str, lengths: tuple[int, int | None]) -> None:
    assert for_string(pattern)[1:] == lengths


def test_one_anchor_leaves_the_other_end_open() -> None:
    assert re.fullmatch(for_string("^https://")[0], "https://a")
    assert re.fullmatch(for_string(r"\.png$")[0], "a.png")
    assert not re.fullmatch(for_string("abc")[0], "abcd")
