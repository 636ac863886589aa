"""Thoughts are told apart from the words behind them, however the answer is cut."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.protocol.speech.page import PageReader, words
from sidecar.protocol.speech.pieces import Kind, Piece
from sidecar.protocol.speech.thoughts import ends_open, is_left_open, thoughts


def read(*parts: str, inside: bool = False) -> list[Piece]:
    reader = PageReader(partial(thoughts, inside=inside, then=words))
    return [piece for part in parts for piece in reader.feed(part)] + reader.flush()


def joined(pieces: list[Piece]) -> dict[Kind, str]:
    return {kind: "".join(piece.text for piece in pieces if piece.kind is kind) for kind in (Kind.THOUGHT, Kind.WORDS)}


@pytest.mark.parametrize(
    ("answer", "inside", "thought", "text"),
    [
        ("<think>\nhm, so\n</think>\n\nYes. \n", False, "hm, so", "Yes. \n"),
        ("hm, so\n</think>\n\nYes.", True, "hm, so", "Yes."),
        ("<think>a</think>b", True, "a", "b"),
        (" \n<think>a", False, "a", ""),
        ("cut \n", True, "cut", ""),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("</think>Yes.", True, "", "Yes."),
        ("Yes, <think> is a word </think>.", False, "", "Yes, <think> is a word </think>."),
        ("  <thinking", False, "", "  <thinking"),
        ("<think>a</think>b<think>c</think>d", False, "a", "b<think>c</think>d"),
        ("<think>1 < 2 </thin </think> x", False, "1 < 2 </thin", "x"),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_what_is_thought_and_what_is_said(answer: str, inside: bool, thought: str, text: str) -> None:
    assert joined(read(answer, inside=inside)) == {Kind.THOUGHT: thought, Kind.WORDS: text}


def test_thoughts_are_told_while_they_come() -> None:
    reader = PageReader(partial(thoughts, inside=False, then=words))
    told = [[piece.text for piece in reader.feed(part)] for part in ("<thi", "nk>a", " b", " <", "/think> ", "c", "d")]
    assert told == [[], ["", "a"], [" b"], [], [], ["", "c"], ["d"]]


SCRIPT = st.lists(st.sampled_from(["<think>", "</think>", "<", "think", "/", ">", " ", "\n", "a", "é"]), max_size=12)


@given(SCRIPT.map("".join), st.lists(st.integers(0, 200), max_size=6), st.booleans())
@example("<think>a</think>b", [3, 11], False)
def test_however_it_is_cut_the_pieces_are_the_same_and_take_it_all(text: str, cuts: list[int], inside: bool) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[start:end] for start, end in pairwise(places)]
    pieces = read(*parts, inside=inside)
    assert joined(pieces) == joined(read(text, inside=inside)) == joined(read(*text, inside=inside))
    assert sum(piece.taken for piece in pieces) == len(text)


def test_a_prompt_or_a_message_may_leave_thoughts_open() -> None:
    assert ends_open("<|im_start|>assistant\n<think>\n")
    assert not ends_open("<think>\n\n</think>\n\n")
    assert not ends_open("what does <think> mean?<|im_end|>\n<|im_start|>assistant\n")
    assert is_left_open("<think>so far")
    assert not is_left_open("<think>all</think>so far")
    assert not is_left_open("so far")
