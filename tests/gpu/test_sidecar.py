"""A whole sidecar on a GPU: many at once, streams, who leaves, what must follow a grammar, and an engine that dies."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes.served import MODEL, Served
from tests.fakes.waiting import until

ROOT = Path(__file__).parents[2]
PLANT = Path(__file__).parent / "plant"
CURSED = 66
BACK_S = 90.0
SHORT: dict[str, Any] = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 24, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"cat": {"enum": ["hat", "mat"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["cat", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    environ = {"PYTHONPATH": f"{PLANT}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return serve(environ, engine={"device": "cuda", "max_sequences": 256}, timeouts={"stall_s": 20.0})


@pytest.fixture
def client(served: Served) -> Iterator[httpx2.Client]:
    with served.client() as client:
        yield client


def chat(number: int, **asked: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"the cat sat {'on the mat ' * (number % 9)}{number}"}]
    return {"model": MODEL, "messages": messages, "max_tokens": 32, "temperature": 0, **asked}


def text_of(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def check_nothing_is_left(served: Served) -> None:
    state = until(lambda: not (now := served.state())["running"] and now, BACK_S)
    assert (state["waiting"], state["kv_used_tokens"]) == (0, 0)


def test_it_says_where_it_runs(served: Served) -> None:
    state = served.state()
    assert state["ready"]
    assert served.events("tier_stepped_down") == []


@pytest.mark.parametrize("count", [1, 8, 64, 256])
async def test_many_at_once_streamed_and_whole_say_the_same(served: Served, count: int) -> None:
    async with served.session() as session:

        async def one(number: int) -> tuple[str, int]:
            async with session.post("/v1/chat/completions", json=chat(number)) as response:
                assert response.status == 200, await response.text()
                told = await response.json()
                return told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]

        async def streamed(number: int) -> tuple[str, int]:
            asked = chat(number, stream=True, stream_options={"include_usage": True})
            pieces: list[str] = []
            tokens = 0
            async with session.post("/v1/chat/completions", json=asked) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        if event["choices"]:
                            pieces.append(event["choices"][0]["delta"].get("content") or "")
                        if event.get("usage"):
                            tokens = event["usage"]["completion_tokens"]
            return "".join(pieces), tokens

        whole = await asyncio.gather(*map(one, range(count)))
        pieces = await asyncio.gather(*map(streamed, range(count)))
    assert pieces == whole
    check_nothing_is_left(served)


def test_what_is_said_among_many_is_what_is_said_alone(served: Served, client: httpx2.Client) -> None:
    alone = [text_of(client.post("/v1/chat/completions", json=chat(number))) for number in range(8)]

    async def together() -> list[str]:
        async with served.session() as session:

            async def one(number: int) -> str:
                async with session.post("/v1/chat/completions", json=chat(number)) as response:
                    return str((await response.json())["choices"][0]["message"]["content"])

            return await asyncio.gather(*map(one, range(64)))

    assert asyncio.run(together())[:8] == alone


def test_a_seed_gives_the_same_text_again(client: httpx2.Client) -> None:
    asked = chat(3, temperature=1, seed=11)
    texts = [text_of(client.post("/v1/chat/completions", json=asked)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert text_of(client.post("/v1/chat/completions", json=chat(3, temperature=1, seed=12))) != texts[0]


def test_log_probabilities_are_told(client: httpx2.Client) -> None:
    response = client.post("/v1/chat/completions", json=chat(1, logprobs=True, top_logprobs=5, ignore_eos=True))
    told = response.json()["choices"][0]["logprobs"]["content"]
    # The end of a turn is a token, and no text.
    assert 16 <= len(told) <= response.json()["usage"]["completion_tokens"]
    for one in told:
        best = [other["logprob"] for other in one["top_logprobs"]]
        assert best == sorted(best, reverse=True)
        assert one["logprob"] == best[0] <= 0


def test_what_must_follow_a_schema_does(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": SCHEMA}}

    async def together() -> list[str]:
        async with served.session() as session:

            async def one(number: int) -> str:
                asked = chat(number, response_format=form, temperature=1, seed=number, max_tokens=200)
                if number % 4 == 3:
                    # One beside them that is free.
                    del asked["response_format"]
                async with session.post("/v1/chat/completions", json=asked) as response:
                    assert response.status == 200, await response.text()
                    return str((await response.json())["choices"][0]["message"]["content"])

            return await asyncio.gather(*map(one, range(32)))

    for number, text in enumerate(asyncio.run(together())):
        if number % 4 != 3:
            found = json.loads(text)
            assert found["cat"] in {"hat", "mat"}
            assert 0 <= found["n"] <= 99


def test_who_leaves_frees_the_memory(served: Served, client: httpx2.Client) -> None:
    endless = chat(2, max_tokens=400, temperature=1, stream=True, ignore_eos=True)
    with client.stream("POST", "/v1/chat/completions", json=endless) as response:
        assert response.status_code == 200, response.read()
        next(line for line in response.iter_lines() if line.startswith("data: "))
    check_nothing_is_left(served)


def test_f4_a_lost_gpu_ends_the_engine_and_another_one_answers(served: Served, client: httpx2.Client) -> None:
    wanted, before = client.post("/v1/completions", json=SHORT).json()["choices"][0]["text"], served.state()
    # Sent again by nobody: the engine is gone, and that is what is said.
    assert client.post("/v1/completions", json=SHORT | {"prompt": [5, CURSED, 7]}).status_code == 503
    check_it_is_back(served, client, wanted, before)
    assert "the GPU has failed" in json.dumps(served.events("engine_failed"))


def test_f2_a_killed_engine_is_replaced(served: Served, client: httpx2.Client) -> None:
    wanted, before = client.post("/v1/completions", json=SHORT).json()["choices"][0]["text"], served.state()
    os.kill(before["engine_pid"], signal.SIGKILL)
    check_it_is_back(served, client, wanted, before)


def check_it_is_back(served: Served, client: httpx2.Client, wanted: str, before: dict[str, Any]) -> None:
    """In a new process, with the same answer as before."""
    again = before["restarts"] + 1
    state = until(lambda: (now := served.state())["ready"] and now["restarts"] == again and now, BACK_S)
    assert state["engine_pid"] not in {0, before["engine_pid"]}
    assert client.post("/v1/completions", json=SHORT).json()["choices"][0]["text"] == wanted
    check_nothing_is_left(served)


def test_it_drains_what_runs_and_ends(served: Served) -> None:
    async def answer() -> str:
        async with served.session() as session:
            asked = chat(4, max_tokens=300)
            task = asyncio.ensure_future(session.post("/v1/chat/completions", json=asked))
            while not served.state()["running"]:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
            served.popen.send_signal(signal.SIGTERM)
            response = await task
            return str((await response.json())["choices"][0]["finish_reason"])

    assert asyncio.run(answer()) in {"stop", "length"}
    assert served.popen.wait(40) == 0
