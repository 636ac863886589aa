"""What a client gives to the model's chat template, through the whole house: an answer that goes on from a message."""

from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

MODEL = "smollm2-135m-instruct"
CHATS: list[list[dict[str, str]]] = [
    [
        {"role": "user", "content": "Name the colours of the rainbow in order."},
        {"role": "assistant", "content": "The colours of the rainbow are red, orange,"},
    ],
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The cap"},
    ],
    [
        {"role": "user", "content": "Write a function."},
        {"role": "assistant", "content": "```python\ndef add(a, b):\n    "},
    ],
    [{"role": "user", "content": "Say a word."}, {"role": "assistant", "content": ""}],
]
NEW_TOKENS = 24


def test_an_open_message_goes_on_as_its_rendered_text_does(client: openai.OpenAI, model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for chat in CHATS:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": NEW_TOKENS, "temperature": 0}
        prompt = tokenizer.apply_chat_template(chat, continue_final_message=True, tokenize=False)
        assert prompt.endswith(chat[-1]["content"])
        theirs = client.completions.create(prompt=prompt, **asked)
        given: dict[str, Any] = {"messages": chat, "extra_body": {"continue_final_message": True}, **asked}
        ours = client.chat.completions.create(**given)
        assert ours.choices[0].message.content == theirs.choices[0].text
        assert ours.choices[0].finish_reason == theirs.choices[0].finish_reason
        assert ours.usage is not None
        assert theirs.usage is not None
        assert (ours.usage.prompt_tokens, ours.usage.completion_tokens) == (
            theirs.usage.prompt_tokens,
            theirs.usage.completion_tokens,
        )
        streamed = client.chat.completions.create(stream=True, **given)
        pieces = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
        assert "".join(pieces) == theirs.choices[0].text


def test_what_this_template_does_not_take_is_refused_before_anything_runs(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": MODEL, "messages": CHATS[0][:1], "max_tokens": 1}
    for fields, param in (
        ({"documents": [{"text": "a"}]}, "documents"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"tools": "x"}}, "chat_template_kwargs.tools"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**given, extra_body=fields)
        assert caught.value.param == param
    # A variable that the template does not look at changes nothing.
    plain = client.chat.completions.create(**given)
    beside = client.chat.completions.create(**given, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert plain.usage is not None
    assert beside.usage is not None
    assert plain.usage.prompt_tokens == beside.usage.prompt_tokens


def test_the_model_says_how_long_its_context_is(client: openai.OpenAI, house: Any) -> None:
    (state,) = house.state()["models"]
    for model in (client.models.retrieve(MODEL), *client.models.list()):
        assert model.model_dump()["max_model_len"] == state["max_context"]
