"""What a key may do, refused exactly: requests a minute, monthly tokens, and a rush against a small quota."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

MODEL = "smollm2-135m-instruct"
ASK: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count to ten."}],
    "temperature": 0,
    "max_tokens": 4,
}
RUSH_QUOTA = 10


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    house = build_house(
        {
            "open": {},
            "three": {"requests_per_minute": 3},
            "ten": {"requests_per_minute": 10},
            "spent": {"monthly_tokens": 100},
            "rush": {"monthly_tokens": 360},
            "two": {"concurrency": 2},
            "short": {"max_output_tokens": 4, "default_output_tokens": 2},
        },
        sidecars("int8"),
    )
    house.start_proxy()
    return house


def usage(house: Any, key: str) -> dict[str, Any]:
    (row,) = [row for row in house.command("usage")["rows"] if row["key_id"] == house.keys[key]]
    return dict(row)


def test_the_fourth_request_of_a_minute_is_refused(house: Any) -> None:
    key = house.key("three")
    client = house.client(key)
    for left in range(2, -1, -1):
        answer = client.chat.completions.with_raw_response.create(**ASK)
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert int(answer.headers["x-ratelimit-remaining-requests"]) in {left, left + 1}
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**ASK)
    error, headers = refused.value, refused.value.response.headers
    assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    # Three a minute is one each twenty seconds, and some of those have gone by.
    assert 1 <= int(headers["retry-after"]) <= 20
    assert 0 < int(headers["retry-after-ms"]) <= 20_000
    assert headers["x-request-id"].startswith("req_")
    assert usage(house, key)["requests"] == 3


def test_retry_after_is_true(house: Any) -> None:
    client = house.client(house.key("ten"))
    refused = None
    while refused is None:
        try:
            client.chat.completions.create(**ASK)
        except openai.RateLimitError as exc:
            refused = exc
    wait_s = int(refused.response.headers["retry-after-ms"]) / 1000
    time.sleep(wait_s)
    client.chat.completions.create(**ASK)


def test_a_quota_nearly_spent_is_refused_for_good(house: Any) -> None:
    key = house.key("spent")
    client = house.client(key)
    total = client.chat.completions.create(**ASK).usage.total_tokens
    while total + usage(house, key)["total_tokens"] <= 100:
        client.chat.completions.create(**ASK)
    before = usage(house, key)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**ASK)
    error = refused.value
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert int(error.response.headers["retry-after"]) > 0
    assert usage(house, key) == before


async def test_fifty_at_once_against_a_quota_for_ten_overshoot_by_nothing(house: Any) -> None:
    key = house.key("rush")
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=key, max_retries=0, timeout=120) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(**ASK) for _ in range(50)), return_exceptions=True
        )
    served = [answer for answer in answers if not isinstance(answer, BaseException)]
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(served) + len(refused) == 50
    assert {answer.code for answer in refused} == {"insufficient_quota"}
    row = usage(house, key)
    assert row["total_tokens"] == sum(answer.usage.total_tokens for answer in served) <= 360
    assert len(served) >= 1
    assert row["reserved_tokens"] == 0


def test_more_output_than_the_tier_allows_is_refused_by_name(house: Any) -> None:
    client = house.client(house.key("short"))
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**ASK, "max_tokens": 5})
    assert (refused.value.code, refused.value.param) == ("integer_above_max_value", "max_tokens")
    defaulted = client.chat.completions.create(model=MODEL, messages=ASK["messages"])
    assert defaulted.usage.completion_tokens <= 2


async def test_a_third_request_at_once_is_refused(house: Any) -> None:
    key = house.key("two")
    long: Any = {**ASK, "max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=key, max_retries=0, timeout=120) as client:
        streams = [await client.chat.completions.create(**long) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**ASK)
        assert refused.value.code == "concurrency_limit_exceeded"
        for stream in streams:
            await stream.close()
        async with asyncio.timeout(20):
            while not await _is_let_in(client):  # noqa: ASYNC110 - only another request tells
                await asyncio.sleep(0.1)


async def _is_let_in(client: openai.AsyncOpenAI) -> bool:
    try:
        await client.chat.completions.create(**ASK)
    except openai.RateLimitError:
        return False
    return True
