"""A client's words never become control tokens, whatever they are and wherever the template puts them."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.tokenizer.control import ControlToken, ControlTokens, Disguise

TOKENS = [
    ControlToken(0, "<|start|>"),
    ControlToken(1, "<|end|>"),
    ControlToken(2, "<s>"),
    ControlToken(3, "<mask>", lstrip=True, rstrip=True),
    ControlToken(4, "<|end|>x"),
]
CONTROL = ControlTokens(TOKENS)

# Words made of the tokens' own characters, so that halves and wholes of them are common.
hostile = st.lists(
    st.sampled_from(
        ["<", "|", ">", "s", "start", "end", "mask", "x", " ", "\n", "<|", "|>", "<|end|>", "<|start|>", "a"]
    ),
    max_size=8,
).map("".join)


def ids(rendered: str) -> list[int]:
    return [part for part in CONTROL.split(rendered) if isinstance(part, int)]


def test_a_rendered_text_is_cut_at_its_control_tokens() -> None:
    assert list(CONTROL.split("<|start|>user\nhi<|end|>\n")) == [0, "user\nhi", 1, "\n"]
    assert list(CONTROL.split("")) == []
    assert list(CONTROL.split("plain")) == ["plain"]


def test_the_longest_token_wins() -> None:
    assert list(CONTROL.split("<|end|>x<|end|>")) == [4, 1]


def test_a_token_takes_the_space_that_is_its_own() -> None:
    assert list(CONTROL.split("a <mask>  b")) == ["a", 3, "b"]


def test_without_special_tokens_there_is_nothing_to_find() -> None:
    none = ControlTokens([])
    assert none.risks("<|end|>") == set()
    assert list(none.split("<|end|>")) == ["<|end|>"]


@given(hostile, hostile, st.sampled_from(["{}{}", "{} {}", "{}|>{}", "<{}{}", "<|{}{}>"]))
def test_c6_texts_that_a_template_joins_make_no_control_token(first: str, second: str, joint: str) -> None:
    disguise = Disguise(CONTROL, [first, second])
    body = joint.format(disguise.put_on(first), disguise.put_on(second))
    assert ids(body) == ids(joint.format("", "")) == []


@given(hostile)
def test_a_template_that_trims_changes_nothing(text: str) -> None:
    disguise = Disguise(CONTROL, [text])
    worn = disguise.put_on(text)
    assert ids(f"<|start|>user\n{worn.strip()}<|end|>") == [0, 1]
    assert disguise.take_off(worn) == text


@given(st.text(max_size=50))
def test_what_is_put_on_can_be_taken_off(text: str) -> None:
    disguise = Disguise(CONTROL, [text])
    worn = disguise.put_on(text)
    assert len(worn) == len(text)
    assert disguise.take_off(worn) == text
    assert disguise.used == (worn != text)


def test_a_private_character_of_the_client_stays_its_own() -> None:
    text = "\U000f0000<s>"
    disguise = Disguise(CONTROL, [text])
    worn = disguise.put_on(text)
    assert worn[0] == "\U000f0000"
    assert worn[1] not in {"<", "\U000f0000"}
    assert disguise.take_off(worn) == text
