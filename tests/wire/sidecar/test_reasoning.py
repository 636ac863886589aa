"""Thoughts over the socket, on each endpoint whose answers are chats, streamed and not."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.protocol.speech.dialect import Dialect
from tests.fakes.engine import FakeEngine, language

Serve = Callable[..., Awaitable[Any]]
MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"model": "org/m", "messages": MESSAGES}
THOUGHTFUL = "<think>\nhm hm\n</think>\n\nYes"
# All but "Yes" and the end of sequence.
THOUGHT_TOKENS = len(THOUGHTFUL) - 3


async def desk_of(serve: Serve, answer: str) -> Any:
    desk = await serve(FakeEngine(lambda _: answer))
    desk.front.language = language(Dialect(thinks=True))
    return desk


def documents(frames: list[str]) -> list[dict[str, Any]]:
    lines = [line for frame in frames for line in frame.splitlines()]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def joined(chunks: list[dict[str, Any]], key: str) -> str:
    return "".join(chunk["choices"][0]["delta"].get(key) or "" for chunk in chunks if chunk["choices"])


async def test_a_chat_s_thoughts_are_beside_its_content_and_counted(serve: Serve) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    answer = (await desk.ask("POST", "/v1/chat/completions", CHAT)).json
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Yes", "hm hm", "hm hm")
    assert answer["usage"]["completion_tokens"] == len(THOUGHTFUL) + 1
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == THOUGHT_TOKENS
    stream = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    chunks = documents((await desk.ask("POST", "/v1/chat/completions", stream)).frames)
    assert (joined(chunks, "content"), joined(chunks, "reasoning_content"), joined(chunks, "reasoning")) == (
        *("Yes", "hm hm", "hm hm"),
    )
    assert chunks[-1]["usage"] == answer["usage"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_thoughts_has_no_such_keys(serve: Serve, stream: bool) -> None:
    desk = await desk_of(serve, "Yes")
    reply = await desk.ask("POST", "/v1/chat/completions", {**CHAT, "stream": stream})
    assert b"reasoning_content" not in reply.body
    assert b'"content":"' in reply.body


async def test_log_probabilities_cover_thoughts_and_markers_streamed_and_not(serve: Serve) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    whole = (await desk.ask("POST", "/v1/chat/completions", {**CHAT, "logprobs": True})).json
    entries = whole["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == THOUGHTFUL
    reply = await desk.ask("POST", "/v1/chat/completions", {**CHAT, "logprobs": True, "stream": True})
    chunks = [chunk["choices"][0] for chunk in documents(reply.frames)]
    assert [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]] == entries
    for chunk in chunks:
        if text := chunk["delta"].get("content") or chunk["delta"].get("reasoning_content"):
            assert "".join(entry["token"] for entry in chunk["logprobs"]["content"]).endswith(text)


async def test_an_answer_may_go_on_within_its_thoughts(serve: Serve) -> None:
    desk = await desk_of(serve, "m</think>Yes")
    messages = [*MESSAGES, {"role": "assistant", "content": "<think>h"}]
    body = {"model": "org/m", "messages": messages, "continue_final_message": True}
    message = (await desk.ask("POST", "/v1/chat/completions", body)).json["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("m", "Yes")


async def test_a_prompt_that_is_completed_has_no_thoughts(serve: Serve) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    answer = (await desk.ask("POST", "/v1/completions", {"model": "org/m", "prompt": "Hi", "max_tokens": 64})).json
    assert answer["choices"][0]["text"] == THOUGHTFUL
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_a_response_s_text_has_no_thoughts_and_its_usage_counts_them(serve: Serve) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    body = {"model": "org/m", "input": "Hi", "include": ["message.output_text.logprobs"]}
    answer = (await desk.ask("POST", "/v1/responses", body)).json
    (part,) = answer["output"][0]["content"]
    assert (part["text"], "".join(entry["token"] for entry in part["logprobs"])) == ("Yes", "Yes")
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == THOUGHT_TOKENS
    events = documents((await desk.ask("POST", "/v1/responses", {**body, "stream": True})).frames)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas == ["Y", "e", "s"]


async def test_a_message_s_text_has_no_thoughts(serve: Serve) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    body = {"model": "org/m", "messages": MESSAGES, "max_tokens": 64}
    assert (await desk.ask("POST", "/v1/messages", body)).json["content"] == [{"type": "text", "text": "Yes"}]
    events = documents((await desk.ask("POST", "/v1/messages", {**body, "stream": True})).frames)
    assert [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"] == ["Y", "e", "s"]
