"""Log-probabilities through the whole house are the stock model's, of answers and of prompts, whoever is beside."""

import asyncio
import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidecar.tokenizer.spelling import Spelling

MODEL = "smollm2-135m-instruct"
CLOSE = 1e-3
TOP = 5
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(a, b):\n    return a + b\n",
    "Grüße aus Köln 🙂 und 你好!",
    "Once upon a time there was a lighthouse. " * 12,
]


class Reference:
    """The stock model in fp32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        spelling = Spelling(self.tokenizer.backend_tokenizer)
        self.spelt = {spelling.bytes_of(token): token for token in range(len(self.tokenizer))}
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text).input_ids
        return found

    def chat_ids(self, content: str) -> list[int]:
        messages = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """`[tokens - 1, vocabulary]`: of what may follow each token but the last."""
        with torch.inference_mode():
            found: torch.Tensor = self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return found


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)


def check_scores(choice: Any, ids: list[int], reference: Reference) -> None:
    """The prompt of an echoed choice, against the stock model."""
    told = choice.logprobs
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    expected = reference.logprobs(ids)
    for at, token in enumerate(ids[1:], start=1):
        row = expected[at - 1]
        assert told.token_logprobs[at] == pytest.approx(row[token].item(), abs=CLOSE)
        assert max(told.top_logprobs[at].values()) == pytest.approx(row.max().item(), abs=CLOSE)
    assert len({round(value, 3) for value in told.token_logprobs[1:]}) >= 8


def test_prompts_are_scored_exactly_as_an_evaluation_asks(client: openai.OpenAI, reference: Reference) -> None:
    prompts = [reference.ids(text) for text in TEXTS]
    # One token is produced that nobody wants, and dropped: it must be the only one too many.
    answer = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234
    )
    assert [choice.index for choice in answer.choices] == list(range(len(TEXTS)))
    for choice, ids in zip(answer.choices, prompts, strict=True):
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or ()) == len(ids) + 1
        check_scores(choice, ids, reference)
        # Greedy or not is read from whether the likeliest one is the one that stands there.
        pairs = zip(choice.logprobs.tokens or (), choice.logprobs.top_logprobs or (), strict=True)
        greedy = [bool(top) and max(top, key=lambda one: top[one]) == token for token, top in pairs]
        best = reference.logprobs(ids).argmax(-1).tolist()
        assert greedy[1:-1] == [likeliest == token for likeliest, token in zip(best, ids[1:], strict=True)]


def test_a_text_is_scored_without_an_answer(client: openai.OpenAI, reference: Reference) -> None:
    answer = client.completions.create(model=MODEL, prompt=TEXTS, max_tokens=0, echo=True, logprobs=TOP)
    for choice, text in zip(answer.choices, TEXTS, strict=True):
        assert (choice.text, choice.finish_reason) == (text, "length")
        assert choice.logprobs is not None
        check_scores(choice, reference.ids(text), reference)
        offsets = choice.logprobs.text_offset or []
        for at, token in enumerate(choice.logprobs.tokens or ()):
            assert token.startswith("bytes:") or text.startswith(token, offsets[at])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_a_chat_s_log_probabilities_are_the_model_s_own_whatever_the_sampling(
    client: openai.OpenAI, reference: Reference
) -> None:
    for asked in [{"temperature": 0}, {"temperature": 1.5, "top_p": 0.8, "seed": 3, "frequency_penalty": 1}]:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Name three colours and a 🙂."}],
            max_tokens=32,
            logprobs=True,
            top_logprobs=TOP,
            **asked,  # type: ignore[arg-type]  # as keywords each is right
        )
        (choice,) = answer.choices
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        spelt = b"".join(bytes(one.bytes or ()) for one in content)
        assert spelt.decode("utf-8", "replace") == choice.message.content
        prompt = reference.chat_ids("Name three colours and a 🙂.")
        # Sampled tokens need not be those that the tokenizer would choose for the text; their bytes tell them.
        ids = [reference.spelt[bytes(one.bytes or ())] for one in content]
        assert len(set(ids)) >= 8
        expected = reference.logprobs([*prompt, *ids])[len(prompt) - 1 :]
        for row, token, one in zip(expected, ids, content, strict=True):
            assert one.logprob == pytest.approx(row[token].item(), abs=CLOSE)
            assert [top.logprob for top in one.top_logprobs] == pytest.approx(row.topk(TOP).values.tolist(), abs=CLOSE)


async def test_log_probabilities_are_the_same_alone_in_company_and_streamed(house: Any) -> None:
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=house.key("open"), max_retries=0) as client:

        async def whole(prompt: str) -> list[float | None]:
            answer = await client.completions.create(
                model=MODEL, prompt=prompt, max_tokens=24, temperature=0, echo=True, logprobs=2
            )
            return answer.choices[0].logprobs.token_logprobs  # type: ignore[union-attr, return-value]  # asked for

        async def streamed(prompt: str) -> list[float | None]:
            stream = await client.completions.create(
                model=MODEL, prompt=prompt, max_tokens=24, temperature=0, echo=True, logprobs=2, stream=True
            )
            chunks = [chunk.choices[0] async for chunk in stream if chunk.choices]
            return [value for chunk in chunks if chunk.logprobs for value in chunk.logprobs.token_logprobs or ()]

        alone = [await whole(text) for text in TEXTS]
        beside = await asyncio.gather(*map(whole, TEXTS), *map(streamed, TEXTS))
    for one, other in zip([*alone, *alone], beside, strict=True):
        assert [value is None for value in one] == [True] + [False] * (len(one) - 1)
        assert len(one) == len(other)
        for left, right in zip(one[1:], other[1:], strict=True):
            assert math.isclose(left or 0.0, right or 0.0, abs_tol=CLOSE)


def test_the_best_of_several_is_the_likeliest(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "The sea was", "max_tokens": 8, "seed": 5, "logprobs": 0, "model": MODEL}
    all_of_them = client.completions.create(n=4, **asked)
    best = client.completions.create(n=1, best_of=4, **asked)

    def mean(choice: Any) -> float:
        return float(sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))

    assert best.choices[0].text == max(all_of_them.choices, key=mean).text
    assert best.usage is not None
    assert all_of_them.usage is not None
    assert best.usage.completion_tokens == all_of_them.usage.completion_tokens


def test_a_banned_token_is_not_said_and_a_forced_one_is(client: openai.OpenAI, reference: Reference) -> None:
    (forced,) = reference.ids(" sea")
    asked: dict[str, Any] = {"model": MODEL, "prompt": "I like the", "max_tokens": 4, "temperature": 0}
    said = client.completions.create(logit_bias={str(forced): 100}, **asked).choices[0].text
    assert said == " sea" * 4
    plain = client.completions.create(**asked, logprobs=0).choices[0]
    assert plain.logprobs is not None
    first = (plain.logprobs.tokens or [""])[0]
    (banned,) = reference.ids(first)
    other = client.completions.create(logit_bias={str(banned): -100}, **asked).choices[0].text
    assert not other.startswith(first)
