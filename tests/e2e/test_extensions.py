"""What vLLM's fields do to an answer is what Transformers' own processors do to it; guesses are on, as by default."""

from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "smollm2-135m-instruct"
NEW_TOKENS = 24
# It answers this with one sentence, and repeats itself if it must go on.
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Reference:
    """The stock model in fp32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        text = self.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
        self.prompt: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids

    def generate(self, prompt: list[int], **options: Any) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "attention_mask": torch.ones_like(ids), **options}
        with torch.inference_mode():
            found: list[int] = self.model.generate(ids, pad_token_id=0, **options)[0, len(prompt) :].tolist()
        return found


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    """The whole answer; its stream has the same text and tokens."""
    body = {"return_token_ids": True, "skip_special_tokens": False, **fields}
    asked: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": NEW_TOKENS, "extra_body": body}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    (choice,) = whole.choices
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    extras: list[Any] = [chunk.choices[0].model_extra for chunk in chunks]
    told: Any = choice.model_extra
    assert [token for one in extras for token in one["token_ids"]] == told["token_ids"]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(told["token_ids"])
    return whole


def tokens(whole: Any) -> list[int]:
    found: list[int] = whole.choices[0].model_extra["token_ids"]
    return found


def test_the_fields_change_an_answer_as_transformers_does(house: Any, reference: Reference) -> None:
    client, tokenizer = house.client(house.key("open")), reference.tokenizer
    plain = ask(client)
    assert plain.model_extra["prompt_token_ids"] == reference.prompt
    assert tokens(plain) == reference.generate(reference.prompt)
    assert tokens(plain)[-1] == tokenizer.eos_token_id
    text = plain.choices[0].message.content

    longer = ask(client, min_tokens=NEW_TOKENS - 2)
    assert tokens(longer) == reference.generate(reference.prompt, min_new_tokens=NEW_TOKENS - 2)
    assert len(tokens(longer)) > len(tokens(plain))

    words = ["Paris", "capital of"]
    bad = [tokenizer(space + word, add_special_tokens=False).input_ids for word in words for space in ("", " ")]
    without = ask(client, bad_words=words)
    assert tokens(without) == reference.generate(reference.prompt, bad_words_ids=bad)
    assert not any(word in without.choices[0].message.content for word in words)

    allowed = sorted({*tokens(plain), *range(300, 400)})
    ours = ask(client, allowed_token_ids=allowed, bad_words=["Paris"], min_tokens=4)
    assert set(tokens(ours)) <= set(allowed)
    assert tokens(ours) == reference.generate(
        reference.prompt,
        min_new_tokens=4,
        bad_words_ids=bad[:2],
        prefix_allowed_tokens_fn=lambda *_: allowed,
    )

    kept = ask(client, truncate_prompt_tokens=7)
    assert kept.usage.prompt_tokens == 7
    assert tokens(kept) == reference.generate(reference.prompt[-7:])

    ended = ask(client, stop=["capital", "France"], include_stop_str_in_output=True)
    cut = min(text.find(stop) + len(stop) for stop in ("capital", "France"))
    assert ended.choices[0].message.content == text[:cut]

    shown = ask(client, include_stop_str_in_output=True)
    assert shown.choices[0].message.content == f"{text}{tokenizer.eos_token}"
