"""The stock OpenAI SDK against a running house: synchronous, asynchronous, streaming and not."""

from typing import Any

import httpx2
import openai
import pytest

MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def key(house: Any) -> str:
    return str(house.key("open"))


def test_a_chat_is_answered(house: Any, key: str) -> None:
    answer = house.client(key).chat.completions.create(**GREEDY)
    assert "Paris" in answer.choices[0].message.content
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("req_")


def test_a_stream_gives_the_same_text_and_usage(house: Any, key: str) -> None:
    client = house.client(key)
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_a_stream_without_include_usage_has_no_usage_and_no_comment(house: Any, key: str) -> None:
    with house.client(key).chat.completions.with_streaming_response.create(**GREEDY, stream=True) as response:
        body = b"".join(response.iter_bytes())
    assert body.endswith(b"data: [DONE]\n\n")
    assert b"tollhouse" not in body
    assert b'"usage":{' not in body


async def test_the_asynchronous_client_streams(house: Any, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(**GREEDY, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert "Paris" in text


def test_a_seed_gives_the_same_sample_and_another_seed_another(house: Any, key: str) -> None:
    client = house.client(key)
    asked: Any = {**GREEDY, "temperature": 1.0, "max_tokens": 32}
    texts = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_two_choices_are_two_samples(house: Any, key: str) -> None:
    answer = house.client(key).chat.completions.create(**{**GREEDY, "temperature": 1.0, "max_tokens": 16}, n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_a_stop_string_ends_the_text_before_it(house: Any, key: str) -> None:
    answer = house.client(key).chat.completions.create(**GREEDY, stop=["Paris"])
    assert "Paris" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_a_completion_continues_text_and_token_ids(house: Any, key: str) -> None:
    client = house.client(key)
    answer = client.completions.create(model=MODEL, prompt=["The capital of France is", [504, 3575]], temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[0].text
    assert answer.usage.completion_tokens <= 2 * 16


def test_models_lists_the_model(house: Any, key: str) -> None:
    client = house.client(key)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_errors_are_the_sdk_s_own(house: Any, key: str) -> None:
    client = house.client(key)
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        house.client("sk-wrong").chat.completions.create(**GREEDY)
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as wrong_model:
        client.chat.completions.create(**{**GREEDY, "model": "gpt-9"})
    assert (wrong_model.value.code, wrong_model.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong_type:
        client.chat.completions.create(**{**GREEDY, "temperature": "hot"})
    assert (wrong_type.value.code, wrong_type.value.param) == ("invalid_type", "temperature")
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(**GREEDY, extra_body={"prompt_logprobs": 1})
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "prompt_logprobs")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(**GREEDY, extra_body={"temprature": 1})
    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "temprature")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt="word " * 9000)
    assert too_long.value.code == "context_length_exceeded"


def test_a4_the_logs_hold_no_key_and_no_content(house: Any, key: str) -> None:
    house.client(key).chat.completions.create(**GREEDY)
    for process in (house.proxy, house.beside.sidecar):
        text = process.log.read_text()
        assert key not in text
        assert "capital of France" not in text
        assert all(line.startswith("{") for line in text.splitlines())


def test_a7_the_admin_listener_is_not_on_the_public_port(house: Any) -> None:
    for path in ("/metrics", "/livez", "/readyz", "/admin/v1/keys", "/internal/state"):
        answer = httpx2.get(f"http://127.0.0.1:{house.port}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    admin = f"http://127.0.0.1:{house.admin_port}"
    assert httpx2.get(f"{admin}/livez").status_code == 200
    assert httpx2.get(f"{admin}/readyz").status_code == 200
    assert httpx2.get(f"{admin}/admin/v1/keys").status_code == 401
