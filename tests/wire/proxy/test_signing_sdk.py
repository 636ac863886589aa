"""The stock OpenAI SDK through our hook: synchronous, asynchronous, streaming, and with its retries."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient

from proxy.signing import Signer
from tests.fakes.sidecar import MODEL
from tests.wire.proxy.house import House

CHAT: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
FULL = (503, {"error": {"message": "full", "type": "x", "code": "server_is_overloaded"}}, {"retry-after-ms": "1"})


@pytest.fixture
async def signer(house: House) -> Signer:
    return Signer(await house.key("signed", signed=True))


@pytest.fixture
async def client(house: House, signer: Signer) -> AsyncIterator[openai.AsyncOpenAI]:
    http = DefaultAsyncHttpxClient(event_hooks={"request": [signer.sign_async]})
    base_url = f"http://127.0.0.1:{house.ready['port']}/v1"
    async with openai.AsyncOpenAI(api_key=signer.bearer, base_url=base_url, http_client=http) as made:
        yield made


async def test_r_the_asynchronous_client_is_served(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content
    assert [model.id async for model in client.models.list()] == [MODEL]


async def test_r_the_asynchronous_client_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**CHAT, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "Hello you"


async def test_r_each_retry_is_signed_anew(house: House, client: openai.AsyncOpenAI) -> None:
    house.sidecar.refusal = FULL
    asked = asyncio.ensure_future(client.chat.completions.create(**CHAT))
    await house.until(lambda: house.lines("request"))
    house.sidecar.refusal = None
    assert (await asked).choices
    statuses = [line["status"] for line in house.lines("request")]
    assert set(statuses) == {503, 200}
    # The nonce of a signed request is used up even if nothing ran: each attempt had one of its own.
    assert len(house.rows("nonce", by="id")) == len(statuses)


async def test_r_what_is_refused_for_good_is_not_retried(house: House, client: openai.AsyncOpenAI) -> None:
    sent: list[dict[str, str]] = []

    async def resend(request: Any) -> None:
        """A client that signs once, and sends the same again."""
        if sent:
            request.headers.update(sent[0])
        sent.append({name: request.headers[name] for name in ("signature", "signature-input")})

    client._client.event_hooks["request"].append(resend)
    assert await client.chat.completions.create(**CHAT)
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.chat.completions.create(**CHAT)
    assert caught.value.code == "nonce_replayed"
    assert len(sent) == 2


async def test_r_the_synchronous_client_is_served_and_streams(house: House, signer: Signer) -> None:
    def use() -> list[str]:
        http = DefaultHttpxClient(event_hooks={"request": [signer.sign]})
        base_url = f"http://127.0.0.1:{house.ready['port']}/v1"
        with openai.OpenAI(api_key=signer.bearer, base_url=base_url, http_client=http) as client:
            whole = client.chat.completions.create(**CHAT)
            stream = client.chat.completions.create(**CHAT, stream=True, extra_query={"trace": "a b"})
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            embedded = [model.id for model in client.models.list()]
        return [str(whole.choices[0].message.content), "".join(pieces), *embedded]

    assert (await asyncio.to_thread(use))[1:] == ["Hello you", MODEL]
