"""In int8, what a request is answered depends on nobody beside it: alone, among 31 others, streamed and not."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

MODEL = "smollm2-135m-instruct"
NEIGHBOURS = 31
NEW_TOKENS = 48
QUESTIONS = [
    {"content": "Write a poem about a lighthouse in winter.", "temperature": 0.0},
    {"content": "Name some rivers, and say where they rise. " + "Mind the details. " * 20, "temperature": 1.0},
]


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any]) -> Iterator[Any]:
    house = build_house(engine={"precision": "int8"})
    house.start_sidecar()
    house.start_proxy()
    return house


async def ask(client: openai.AsyncOpenAI, question: dict[str, Any], *, stream: bool) -> str:
    told: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question["content"]}],
        "temperature": question["temperature"],
        "seed": 7,
        "max_tokens": NEW_TOKENS,
    }
    if not stream:
        answer = await client.chat.completions.create(**told)
        return str(answer.choices[0].message.content)
    chunks = await client.chat.completions.create(**told, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])


async def among_others(client: openai.AsyncOpenAI, question: dict[str, Any], *, stream: bool) -> str:
    """Its text, while others of many lengths begin, run and end around it."""

    async def other(number: int) -> None:
        await asyncio.sleep(0.02 * (number % 7))
        await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"{number}: count. " * (1 + number % 9)}],
            temperature=number % 2,
            max_tokens=8 + 3 * (number % 20),
        )

    others = [asyncio.create_task(other(number)) for number in range(NEIGHBOURS)]
    await asyncio.sleep(0.06)
    text = await ask(client, question, stream=stream)
    await asyncio.gather(*others)
    return text


async def test_a_text_is_the_same_alone_and_among_others_streamed_and_not(house: Any) -> None:
    async with openai.AsyncOpenAI(
        base_url=house.base_url, api_key=house.key("open"), max_retries=0, timeout=280
    ) as client:
        for question in QUESTIONS:
            alone = await ask(client, question, stream=False)
            assert len(alone) > NEW_TOKENS
            assert await ask(client, question, stream=True) == alone
            for stream in (True, False):
                assert await among_others(client, question, stream=stream) == alone
