"""The bound from bytes: where there is one, and that it bounds."""

import json

import pytest
from tokenizers import Tokenizer

from sidecar.tokenizer.bound import is_byte_level, measure
from sidecar.tokenizer.messages import Message
from sidecar.wire.internal import TokenBound


def spec(tokenizer: Tokenizer, **changes: object) -> str:
    return json.dumps(json.loads(tokenizer.to_str()) | changes)


def test_byte_level_bpe_has_a_bound(tokenizer: Tokenizer) -> None:
    assert is_byte_level(tokenizer.to_str())


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Metaspace"}]}},
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "byte_fallback": True}},
    ],
)
def test_a_tokenizer_whose_tokens_may_be_shorter_than_a_byte_has_none(
    tokenizer: Tokenizer, changes: dict[str, object]
) -> None:
    assert not is_byte_level(spec(tokenizer, **changes))


def test_a_sequence_of_safe_steps_has_a_bound(tokenizer: Tokenizer) -> None:
    steps = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False}]
    assert is_byte_level(spec(tokenizer, pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))


def test_the_measure_covers_every_shape_of_chat() -> None:
    def render(messages: tuple[Message, ...]) -> str:
        system = "" if messages[0].role == "system" else "<system>"
        return system + "".join(f"<{message.role}>{message.content}" for message in messages) + "<assistant>"

    found = measure(render, len, 2)
    # "<system>" and the last "<assistant>" once, "<assistant>" for each message at most, and what any prompt costs.
    assert found == TokenBound(per_request=8 + 11 + 2, per_message=11)
    for roles in (["system"], ["user"], ["assistant"], ["tool"], ["system", "user"], ["user", "assistant"] * 5):
        rendered = render(tuple(Message(role, "") for role in roles))
        assert len(rendered) + 2 <= found.per_request + found.per_message * len(roles)


def test_a_template_that_repeats_a_client_s_text_has_no_bound() -> None:
    assert measure(lambda messages: messages[0].content * 3, len, 0) is None


def test_a_template_that_refuses_everything_costs_what_any_prompt_costs() -> None:
    assert measure(lambda _: None, len, 3) == TokenBound(3, 0)
