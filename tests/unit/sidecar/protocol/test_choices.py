"""A choice from its deltas to its one end: whose count stands, what text is shown, and when the engine is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.choices import Choices, Echo, Progress, Telling
from sidecar.protocol.logprobs import Entry
from sidecar.protocol.speech.dialect import Speech
from sidecar.protocol.speech.pieces import Kind
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import ApiError
from sidecar.wire.frames import Delta, Finish, Logprobs

EOS = 0


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def choices(*stops: str, count: int = 1, skipped: frozenset[int] = frozenset({EOS})) -> Choices:
    return Choices(count, lambda _: Detokenizer(letters, skipped), stops, (EOS,))


def delta(text: str, generated: int, finish: Finish | None = None, index: int = 0, *, eos: bool = False) -> Delta:
    return Delta("req_1", index, [*map(ord, text), *([EOS] if eos else [])], generated, finish)


def test_text_comes_as_the_tokens_do_and_the_engine_s_count_stands() -> None:
    one = choices()
    assert one.take(delta("a", 1)) == Progress(0, "a")
    assert one.take(delta("b", 2)) == Progress(0, "b")
    assert one.take(delta("", 3, Finish.STOP, eos=True)) == Progress(0)
    assert (one.ended, one.completion_tokens, one.finish_reason, one.all[0].text) == (True, 3, "stop", "ab")


def test_the_end_of_sequence_counts_also_where_the_engine_does_not_send_it() -> None:
    one = choices()
    one.take(delta("a", 2, Finish.STOP))
    assert (one.completion_tokens, one.all[0].text) == (2, "a")


def test_a_stop_token_that_is_an_ordinary_word_is_not_shown() -> None:
    one = choices(skipped=frozenset())
    one.take(delta("a", 2, Finish.STOP, eos=True))
    assert one.all[0].text == "a"


def test_length_is_told_as_length() -> None:
    one = choices()
    one.take(delta("ab", 2, Finish.LENGTH))
    assert (one.finish_reason, one.all[0].text) == ("length", "ab")


def test_a_stop_string_cancels_at_the_token_that_completed_it() -> None:
    one = choices("END")
    assert one.take(delta("xE", 2)) == Progress(0, "x")
    # The engine has run on past it: of its six tokens four count.
    assert one.take(delta("NDyz", 6)) == Progress(0, "", cancel_at=4)
    assert (one.ended, one.completion_tokens, one.finish_reason, one.all[0].text) == (True, 4, "stop", "x")


def test_what_an_ended_sequence_ran_past_a_stop_string_is_told_not_to_count() -> None:
    one = choices("yz")
    assert one.take(delta("ayzbc", 5, Finish.LENGTH)).cancel_at == 3
    assert (one.ended, one.completion_tokens, one.finish_reason) == (True, 3, "stop")
    # Nothing is to be corrected where the stop string ends with the sequence.
    assert choices("yz").take(delta("ayz", 3, Finish.LENGTH)).cancel_at is None


def test_after_a_stop_string_the_engine_s_later_deltas_change_nothing() -> None:
    one = choices("b")
    one.take(delta("ab", 2))
    assert one.take(delta("c", 3)) == Progress(0)
    assert one.take(delta("", 2, Finish.CANCELLED)) == Progress(0)
    assert (one.completion_tokens, one.all[0].text) == (2, "a")


def test_what_ends_a_choice_is_shown_where_that_is_wanted() -> None:
    def choice(skipped: frozenset[int] = frozenset({EOS})) -> Choices:
        how = Telling(logprobs=True)
        return Choices(1, lambda _: Detokenizer(letters, skipped), ("bc",), (EOS, ord("z")), (how,), stop_shown=True)

    one = choice()
    assert one.take(scored("ab", 1)).text == "a"
    told = one.take(scored("cd", 3))
    # The letter behind it is not, and the tokens are those of the text.
    assert (told.text, told.cancel_at, letters([each.token for each in one.all[0].entries])) == ("bc", 3, "abc")
    for text, skipped, shown in [
        ("az", frozenset({EOS}), "az"),
        ("a\0", frozenset({EOS}), "a"),
        ("a\0", frozenset(), "a\0"),
    ]:
        one = choice(skipped)
        one.take(scored(text, 1, Finish.STOP))
        assert (one.all[0].text, one.finish_reason, one.completion_tokens) == (shown, "stop", 2)
        assert letters([each.token for each in one.all[0].entries]) == shown


def test_a_stop_string_before_enough_tokens_is_text() -> None:
    def choice(least: int) -> Choices:
        return Choices(1, lambda _: Detokenizer(letters, frozenset({EOS})), ("b",), (EOS,), min_tokens=least)

    for least, text, counts in [
        (0, "a", 2),
        (1, "a", 2),
        (2, "abca", 5),
        (4, "abca", 5),
        (5, "abcab", 5),
        (9, "abcab", 5),
    ]:
        one = choice(least)
        one.take(delta("abc", 3))
        one.take(delta("ab", 5, Finish.LENGTH))
        assert (one.all[0].text, one.completion_tokens) == (text, counts)


def test_a_stop_string_completed_by_the_last_token_needs_no_cancel() -> None:
    one = choices("ab")
    assert one.take(delta("ab", 2, Finish.LENGTH)) == Progress(0, "")
    assert (one.finish_reason, one.all[0].text) == ("stop", "")


def test_what_was_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    one = choices("END")
    assert one.take(delta("aEN", 3)) == Progress(0, "a")
    assert one.take(delta("", 4, Finish.STOP, eos=True)) == Progress(0, "EN")


def test_a_request_ends_when_all_its_choices_have() -> None:
    two = choices(count=2)
    two.take(delta("a", 1, Finish.LENGTH, index=1))
    assert not two.ended
    two.take(delta("bc", 2, Finish.STOP, index=0))
    assert (two.ended, two.completion_tokens, two.finish_reason) == (True, 3, "stop")


@pytest.mark.parametrize(
    ("finish", "status", "code"),
    [(Finish.ERROR, 500, None), (Finish.DEADLINE, 504, "timeout"), (Finish.CANCELLED, 500, "request_cancelled")],
)
def test_an_end_that_is_no_answer_is_an_error(finish: Finish, status: int, code: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        choices().take(delta("a", 1, finish))
    assert (caught.value.status, caught.value.code) == (status, code)


@given(st.text("abE", max_size=30), st.lists(st.integers(1, 4), max_size=30), st.sampled_from(["ab", "bb", "aEa"]))
def test_however_the_tokens_come_the_text_ends_before_the_first_stop_string(
    text: str, cuts: list[int], stop: str
) -> None:
    one = choices(stop)
    shown, at, cancelled = "", 0, None
    for cut in [*cuts, len(text)]:
        piece = text[at : at + cut]
        at += len(piece)
        progress = one.take(delta(piece, at))
        shown += progress.text
        cancelled = cancelled or progress.cancel_at
    shown += one.take(delta("", at, Finish.LENGTH)).text
    found = text.find(stop)
    assert shown == one.all[0].text == (text if found < 0 else text[:found])
    assert cancelled == (None if found < 0 else found + len(stop))
    assert one.completion_tokens == (len(text) if found < 0 else found + len(stop))


def scored(text: str, first: int, finish: Finish | None = None, *, eos: bool = False) -> Delta:
    """Tokens with log-probabilities -1, -2 … from `first` on."""
    plain = delta(text, first + len(text) + eos - 1, finish, eos=eos)
    logprobs = [Logprobs(-float(first + at)) for at in range(len(plain.token_ids))]
    return Delta("req_1", 0, plain.token_ids, plain.generated, finish, logprobs=logprobs)


def entry(letter: str, number: int, offset: int) -> Entry:
    return Entry(ord(letter) if letter else EOS, Logprobs(-float(number)), offset, begins=number == 1)


def telling(*stops: str, **told: object) -> Choices:
    how = Telling(logprobs=True, **told)  # type: ignore[arg-type]  # a test's shorthand
    return Choices(1, lambda _: Detokenizer(letters, frozenset({EOS})), stops, (EOS,), (how,))


def test_log_probabilities_come_with_their_text() -> None:
    one = telling("xyz")
    assert one.take(scored("ax", 1)) == Progress(0, "a", entries=(entry("a", 1, 0),))
    # What may become a stop string keeps its tokens back, and does not lose them.
    assert one.take(scored("y", 3)) == Progress(0, "")
    assert one.take(scored("b", 4)).entries == (entry("x", 2, 1), entry("y", 3, 2), entry("b", 4, 3))
    assert one.take(scored("c", 5, Finish.LENGTH)).entries == (entry("c", 5, 4),)
    assert [found.token for found in one.all[0].entries] == [ord(letter) for letter in "axybc"]


def test_a_stop_string_takes_its_tokens_with_it() -> None:
    one = telling("xyz")
    assert one.take(scored("axyz!", 1)) == Progress(0, "a", 4, (entry("a", 1, 0),))


def test_a_chat_has_no_entry_for_the_end_and_a_completion_has() -> None:
    chat, text = telling(), telling(end_token=True)
    assert chat.take(scored("a", 1, Finish.STOP, eos=True)).entries == (entry("a", 1, 0),)
    assert text.take(scored("a", 1, Finish.STOP, eos=True)).entries == (entry("a", 1, 0), entry("", 2, 1))


def test_a_character_of_several_tokens_comes_with_all_of_them() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    one = Choices(1, lambda _: Detokenizer(decode, frozenset()), (), (), (Telling(logprobs=True),))
    first, second = "é".encode()
    assert one.take(Delta("r", 0, [first], 1, logprobs=[Logprobs(-1)])) == Progress(0)
    told = one.take(Delta("r", 0, [second], 2, logprobs=[Logprobs(-2)]))
    assert (told.text, [(found.token, found.offset) for found in told.entries]) == ("é", [(first, 0), (second, 0)])


def test_an_echo_comes_before_the_first_token_with_what_its_tokens_score() -> None:
    echo = Echo("hi!", (7, 8), (0, 2))
    one = telling(end_token=True, echo=echo, offset=3)
    assert one.take(Delta("r", 0, [], 0, prompt_logprobs=[Logprobs(-9)])) == Progress(0)
    told = one.take(scored("a", 1))
    assert told.text == "hi!a"
    assert told.entries == (Entry(7, None, 0), Entry(8, Logprobs(-9), 2), entry("a", 1, 3))


def test_where_only_the_prompt_was_wanted_its_echo_is_the_answer() -> None:
    one = telling(end_token=True, echo=Echo("hi!", (7, 8), (0, 2)), offset=3)
    told = one.take(Delta("r", 0, [], 0, Finish.LENGTH, prompt_logprobs=[Logprobs(-9)]))
    assert (told.text, len(told.entries), one.finish_reason) == ("hi!", 2, "length")


def test_a_prompt_that_was_not_scored_whole_is_no_answer() -> None:
    one = telling(end_token=True, echo=Echo("hi!", (7, 8), (0, 2)), offset=3)
    with pytest.raises(ValueError, match="zip"):
        one.take(scored("a", 1))


def utf8(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("end_token", [False, True])
def test_a_part_of_a_character_waits_for_the_rest(end_token: bool) -> None:
    how = Telling(logprobs=True, end_token=end_token)
    one = Choices(1, lambda _: Detokenizer(utf8, frozenset()), (), (), (how,))
    first, second = "é".encode()
    told = one.take(Delta("r", 0, [97, first], 2, logprobs=[Logprobs(-1), Logprobs(-2)]))
    assert (told.text, [found.token for found in told.entries]) == ("a", [97])
    told = one.take(Delta("r", 0, [second], 3, logprobs=[Logprobs(-3)]))
    assert (told.text, [found.token for found in told.entries]) == ("é", [first, second])


def test_what_stays_a_part_of_a_character_is_told_at_the_end() -> None:
    one = Choices(1, lambda _: Detokenizer(utf8, frozenset()), (), (), (Telling(logprobs=True),))
    told = one.take(Delta("r", 0, ["é".encode()[0]], 1, Finish.LENGTH, logprobs=[Logprobs(-1)]))
    assert (told.text, len(told.entries)) == ("\ufffd", 1)


def test_a_control_token_in_the_middle_is_told_in_completions_only() -> None:
    chat, text = telling(), telling(end_token=True)
    odd = Delta("r", 0, [ord("a"), EOS, ord("b")], 3, Finish.LENGTH, logprobs=[Logprobs(-1)] * 3)
    assert [found.token for found in chat.take(odd).entries] == [ord("a"), ord("b")]
    assert [found.token for found in text.take(odd).entries] == [ord("a"), EOS, ord("b")]


@given(st.text("abcE", max_size=20), st.lists(st.integers(1, 4), max_size=20), st.sampled_from(["", "cE", "bEc"]))
def test_however_the_tokens_come_their_entries_are_those_of_the_text(text: str, cuts: list[int], stop: str) -> None:
    one = telling(*([stop] if stop else []), offset=5)
    told: list[Entry] = []
    shown, at = "", 0
    for cut in [*cuts, len(text)]:
        progress = one.take(scored(text[at : at + cut], at + 1))
        at = min(len(text), at + cut)
        shown += progress.text
        told += progress.entries
        # What is told by now is what is shown by now.
        assert letters([found.token for found in told]) == shown
    last = one.take(delta("", at, Finish.LENGTH))
    told += last.entries
    assert letters([found.token for found in told]) == shown + last.text
    assert [found.offset for found in told] == list(range(5, 5 + len(told)))
    assert told == one.all[0].entries


@given(st.text("abcE", max_size=20), st.lists(st.integers(1, 4), max_size=20), st.sampled_from(["", "cE", "bEc"]))
def test_the_tokens_told_are_those_that_count(text: str, cuts: list[int], stop: str) -> None:
    one = Choices(
        1,
        lambda _: Detokenizer(letters, frozenset({EOS})),
        (stop,) if stop else (),
        (EOS,),
        (Telling(tokens=True),),
    )
    told: list[int] = []
    at = 0
    for cut in [*cuts, len(text)]:
        piece = text[at : at + cut]
        at += len(piece)
        told += one.take(delta(piece, at)).tokens
    told += one.take(delta("", at + 1, Finish.STOP, eos=True)).tokens
    ends = text.find(stop) + len(stop) if stop and stop in text else None
    assert told == one.all[0].tokens == [*map(ord, text[:ends]), *([EOS] if ends is None else [])]
    assert one.completion_tokens == len(told)


def test_a_text_goes_on_from_the_tokens_before_it() -> None:
    def words(ids: list[int]) -> str:
        return " ".join("xyz"[token] for token in ids)

    for before, text, begins in [((), "y", True), ((0,), " y", False)]:
        how = Telling(logprobs=True, before=before)
        one = Choices(1, lambda ids: Detokenizer(words, frozenset(), ids), (), (), (how,))
        told = one.take(Delta("r", 0, [1], 1, logprobs=[Logprobs(-1)]))
        assert (told.text, told.entries[0].begins) == (text, begins)


def test_the_end_counts_for_how_likely_an_answer_is() -> None:
    two = choices(count=2)
    two.take(Delta("r", 0, [97, EOS], 2, Finish.STOP, logprobs=[Logprobs(-1), Logprobs(-9)]))
    two.take(Delta("r", 1, [98, 98], 2, Finish.LENGTH, logprobs=[Logprobs(-2), Logprobs(-2)]))
    assert [choice.mean_logprob for choice in two.all] == [-5, -2]
    assert [choice.text for choice in two.best(1, 2)] == ["bb"]


def test_the_best_are_those_with_the_likeliest_tokens() -> None:
    four = Choices(4, lambda _: Detokenizer(letters, frozenset()), (), ())
    for index, (text, logprob) in enumerate([("aa", -3.0), ("b", -1.0), ("cccc", -0.5), ("d", -2.0)]):
        logprobs = [Logprobs(logprob)] * len(text)
        four.take(Delta("r", index, [*map(ord, text)], len(text), Finish.LENGTH, logprobs=logprobs))
    assert [choice.text for choice in four.best(2, 4)] == ["cccc", "b"]
    assert [choice.text for choice in four.best(1, 2)] == ["b", "cccc"]
    assert four.completion_tokens == 8


def test_cached_tokens_are_counted_once_a_prompt() -> None:
    four = choices(count=4)
    for index in range(4):
        four.take(Delta("r", index, [97], 1, Finish.LENGTH, cached_tokens=64))
    assert four.cached_tokens(2) == 128


def thinking(*stops: str, inside: bool = True, **told: object) -> Choices:
    how = Telling(logprobs=True, **told)  # type: ignore[arg-type]  # a test's shorthand
    speech = Speech(thinks=True, inside=inside)
    return Choices(1, lambda _: Detokenizer(letters, frozenset({EOS})), stops, (EOS,), (how,), speech=speech)


def test_a_stop_string_ends_thoughts_too_and_their_tokens_are_counted() -> None:
    one = thinking("END")
    progress = [one.take(scored("ab E", 1)), one.take(scored("NDxy", 5))]
    assert [piece.text for told in progress for piece in told.pieces] == ["ab"]
    assert (progress[1].cancel_at, one.all[0].thought, one.all[0].text, one.thought_tokens) == (6, "ab", "", 3)
    assert letters([found.token for found in one.all[0].entries]) == "ab "


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", " ", "a", "b", "ä"]), max_size=10).map("".join),
    st.lists(st.integers(1, 5), max_size=20),
    st.sampled_from(["ab", "a<", "never"]),
    st.booleans(),
)
def test_however_tokens_come_thoughts_text_entries_and_count_are_the_same(
    text: str, cuts: list[int], stop: str, inside: bool
) -> None:
    def outcome(sizes: list[int]) -> tuple[object, ...]:
        one, told, at = thinking(stop, inside=inside), [], 0
        for size in [*sizes, len(text)]:
            piece = text[at : at + size]
            told.append(one.take(scored(piece, at + 1)))
            at += len(piece)
        told.append(one.take(scored("", at + 1, Finish.STOP, eos=True)))
        choice = one.all[0]
        streamed = [piece for progress in told for piece in progress.pieces]
        assert "".join(piece.text for piece in streamed if piece.kind is Kind.THOUGHT) == choice.thought
        assert "".join(progress.text for progress in told) == choice.text
        assert [entry for progress in told for entry in progress.entries] == choice.entries
        return choice.thought, choice.text, choice.entries, choice.generated, choice.thought_tokens

    assert outcome(cuts) == outcome([]) == outcome([1] * len(text))
