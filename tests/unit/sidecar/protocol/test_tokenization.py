"""From bodies of /tokenize and /detokenize to vLLM's answers."""

import json
from typing import Any

import msgspec
import pytest

from sidecar.protocol.fields import Fields
from sidecar.protocol.plan import MOST_BYTES_PER_TOKEN, Limits
from sidecar.protocol.tokenization import REFUSED, read_detokenize, read_tokenize, tokenization
from sidecar.settings import Api
from sidecar.wire.errors import ApiError
from tests.fakes.engine import LetterTokenizer

LIMITS = Limits("m", 10, 1000, ())
MESSAGES = [{"role": "user", "content": "Hi"}]
MOST = MOST_BYTES_PER_TOKEN * LIMITS.max_context


class NotingTokenizer(LetterTokenizer):
    """Mutable: `flags`, those that it was last asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.flags: dict[str, bool] = {}

    def encode_text(self, text: str, **flags: bool) -> list[int]:
        self.flags = flags
        return super().encode_text(text)


def ask(
    told: dict[str, Any], *, back: bool = False, api: Api | None = None, encoder: LetterTokenizer | None = None
) -> Any:
    read = read_detokenize if back else read_tokenize
    request = read(Fields(told), api or Api())
    return json.loads(msgspec.json.encode(tokenization(request, encoder or LetterTokenizer(), LIMITS)))


def flags(**told: Any) -> dict[str, bool]:
    encoder = NotingTokenizer()
    ask(told, encoder=encoder)
    return encoder.flags


def refused(told: dict[str, Any], *, back: bool = False) -> tuple[str | None, str | None]:
    """The field at fault and the code."""
    with pytest.raises(ApiError) as caught:
        ask(told, back=back)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


def test_a_text_and_a_chat_become_tokens() -> None:
    assert ask({"prompt": "abc"}) == {"count": 3, "max_model_len": 10, "tokens": [97, 98, 99], "token_strs": None}
    assert ask({"messages": MESSAGES})["tokens"] == [*map(ord, "u:Hi.")]
    open_one = [*MESSAGES, {"role": "assistant", "content": "Yes"}]
    variables = {"chat_template_kwargs": {"thinking": False}}
    asked = {"messages": open_one, "continue_final_message": True, **variables}
    assert ask(asked)["tokens"] == [*map(ord, "thinking=False.u:Hi.a:Yes")]


def test_the_strings_of_tokens_are_told_if_wanted() -> None:
    assert ask({"prompt": "ab", "return_token_strs": True})["token_strs"] == ["<a>", "<b>"]
    assert ask({"messages": MESSAGES, "return_token_strs": True})["token_strs"][0] == "<u>"
    for unwanted in (False, None):
        assert ask({"prompt": "ab", "return_token_strs": unwanted})["token_strs"] is None


def test_nothing_has_no_tokens_and_back() -> None:
    assert ask({"prompt": ""})["count"] == 0
    assert ask({"tokens": []}, back=True) == {"prompt": ""}


def test_tokens_become_a_text() -> None:
    assert ask({"tokens": [97, 98, 999]}, back=True) == {"prompt": "abϧ"}


@pytest.mark.parametrize(("given", "added"), [({}, True), ({"add_special_tokens": None}, True)])
def test_special_tokens_are_added_to_a_text_unless_they_are_unwanted(given: dict[str, Any], added: bool) -> None:
    assert flags(prompt="a", **given) == {"add_special_tokens": added}
    assert flags(prompt="a", add_special_tokens=False) == {"add_special_tokens": False}


def test_defaults_of_the_other_kind_ask_for_nothing() -> None:
    assert ask({"prompt": "a", "add_generation_prompt": True, "continue_final_message": False})["count"] == 1
    assert ask({"messages": MESSAGES, "add_special_tokens": False})["count"] == 5
    assert ask({"messages": MESSAGES, "chat_template_kwargs": {}, "tools": None})["count"] == 5


@pytest.mark.parametrize(
    ("told", "param", "code"),
    [
        ({}, "prompt", "missing_required_parameter"),
        ({"prompt": None, "messages": None}, "prompt", "missing_required_parameter"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt", "invalid_value"),
        ({"prompt": ["a"]}, "prompt", "invalid_type"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": "a", "model": 5}, "model", "invalid_type"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens", "invalid_type"),
        ({"prompt": "a", "return_token_strs": "yes"}, "return_token_strs", "invalid_type"),
        ({"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt", "unsupported_parameter"),
        ({"prompt": "a", "continue_final_message": True}, "continue_final_message", "unsupported_parameter"),
        ({"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens", "unsupported_parameter"),
        ({"messages": MESSAGES, "add_generation_prompt": 0}, "add_generation_prompt", "invalid_type"),
        ({"messages": MESSAGES, "continue_final_message": "no"}, "continue_final_message", "invalid_type"),
        (
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "invalid_value",
        ),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "Hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"prompt": "a", "temperature": 1}, "temperature", "unknown_parameter"),
        *(({"messages": MESSAGES, name: {"a": 1}}, name, "unsupported_parameter") for name in REFUSED),
    ],
)
def test_what_cannot_be_tokenised_is_refused_by_name(told: dict[str, Any], param: str, code: str) -> None:
    assert refused(told) == (param, code)


@pytest.mark.parametrize(
    ("told", "param", "code"),
    [
        ({}, "tokens", "missing_required_parameter"),
        ({"tokens": "abc"}, "tokens", "invalid_type"),
        ({"tokens": [97, "a"]}, "tokens[1]", "invalid_type"),
        ({"tokens": [97.0]}, "tokens[0]", "invalid_type"),
        ({"tokens": [True]}, "tokens[0]", "invalid_type"),
        ({"tokens": [97, -1]}, "tokens[1]", "invalid_value"),
        ({"tokens": [97, 1000]}, "tokens", "invalid_value"),
        ({"tokens": [1 << 80]}, "tokens[0]", "invalid_value"),
        ({"tokens": [97], "model": []}, "model", "invalid_type"),
        ({"tokens": [97], "skip_special_tokens": True}, "skip_special_tokens", "unknown_parameter"),
    ],
)
def test_what_is_no_token_is_refused_by_name(told: dict[str, Any], param: str, code: str) -> None:
    assert refused(told, back=True) == (param, code)


def test_a_token_out_of_the_vocabulary_is_told() -> None:
    with pytest.raises(ApiError, match="token 1000 is outside the vocabulary of 1000 tokens"):
        ask({"tokens": [97, 1000]}, back=True)


def test_a_text_may_pass_the_context_but_not_by_far() -> None:
    encoder = LetterTokenizer()
    assert ask({"prompt": "a" * MOST}, encoder=encoder)["count"] == MOST
    assert ask({"tokens": [97] * MOST}, back=True) == {"prompt": "a" * MOST}
    assert refused({"prompt": "a" * (MOST + 1)}) == ("prompt", "context_length_exceeded")
    assert refused({"prompt": "é" * (MOST // 2 + 1)}) == ("prompt", "context_length_exceeded")
    assert refused({"messages": [*MESSAGES, {"role": "user", "content": "a" * MOST}]}) == (
        "messages",
        "context_length_exceeded",
    )
    assert refused({"tokens": [97] * (MOST + 1)}, back=True) == ("tokens", "array_above_max_length")


@pytest.mark.parametrize(("told", "back"), [({"prompt": "a"}, False), ({"messages": MESSAGES}, False), ({}, True)])
def test_fields_that_nobody_knows_are_named_where_they_may_pass(told: dict[str, Any], back: bool) -> None:
    read = read_detokenize if back else read_tokenize
    given = {**told, "tokens": [97]} if back else told
    assert read(Fields({**given, "model": "m", "truncate": 5}), Api(unknown_fields="ignore")).ignored == ("truncate",)
