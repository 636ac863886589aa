"""LiteLLM's client, by its prefixes openai/, text-completion-openai/ and hosted_vllm/."""

import os
from typing import Any

import pytest

from tests.clients.conftest import EMBEDDER
from tests.e2e.house import MODEL, House

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def litellm(house: House) -> Any:
    """Imported late: it reads the environment then."""
    import litellm  # noqa: PLC0415

    return litellm


@pytest.fixture(params=["openai", "hosted_vllm"])
def asked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """`hosted_vllm/` does not look at OPENAI_BASE_URL, so it is told."""
    where = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
    return {"model": f"{request.param}/{MODEL}", "messages": QUESTION, "max_tokens": 8, "temperature": 0, **where}


def test_a_chat_whole_and_streamed(litellm: Any, asked: dict[str, Any]) -> None:
    whole = litellm.completion(**asked)
    assert whole.usage.completion_tokens == 8
    chunks = list(litellm.completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


async def test_a_chat_without_waiting(litellm: Any, asked: dict[str, Any]) -> None:
    whole = await litellm.acompletion(**asked)
    stream = await litellm.acompletion(**asked, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_a_completion(litellm: Any) -> None:
    answer = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="One, two,", max_tokens=4)
    assert answer.choices[0].text


def test_a_response(litellm: Any) -> None:
    answer = litellm.responses(model=f"openai/{MODEL}", input="Say hello.", max_output_tokens=8)
    assert answer.output_text


def test_embeddings(litellm: Any) -> None:
    answer = litellm.embedding(model=f"openai/{EMBEDDER}", input=["a cat"])
    assert len(answer.data[0]["embedding"]) == 384


def test_errors_are_its_own(litellm: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/gpt-9"})
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(**{**asked, "temperature": 3})
