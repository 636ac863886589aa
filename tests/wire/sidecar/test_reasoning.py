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


async def test_a_response_tells_thoughts_as_an_item_before_its_message(serve: Serve) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    body = {"model": "org/m", "input": "Hi", "include": ["message.output_text.logprobs"]}
    answer = (await desk.ask("POST", "/v1/responses", body)).json
    thought, message = answer["output"]
    assert (thought["type"], thought["summary"]) == ("reasoning", [])
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm hm"}]
    (part,) = message["content"]
    assert (part["text"], "".join(entry["token"] for entry in part["logprobs"])) == ("Yes", "Yes")
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == THOUGHT_TOKENS
    events = documents((await desk.ask("POST", "/v1/responses", {**body, "stream": True})).frames)
    kinds = [(event["type"].removeprefix("response."), event.get("output_index")) for event in events[2:-1]]
    letters = [("reasoning_text.delta", 0)] * len("hm h") + [("output_text.delta", 1)] * 3
    assert [kind for kind in kinds if kind in letters] == [("reasoning_text.delta", 0)] * 4 + letters[-3:]
    assert [kind for kind in kinds if kind not in letters] == [
        *(("output_item.added", 0), ("content_part.added", 0)),
        *(("reasoning_text.done", 0), ("content_part.done", 0), ("output_item.done", 0)),
        *(("output_item.added", 1), ("content_part.added", 1)),
        *(("output_text.done", 1), ("content_part.done", 1), ("output_item.done", 1)),
    ]


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}, {"type": "adaptive"}])
async def test_a_message_tells_thoughts_where_they_are_asked_for(serve: Serve, thinking: Any) -> None:
    desk = await desk_of(serve, THOUGHTFUL)
    body = {"model": "org/m", "messages": MESSAGES, "max_tokens": 64, "thinking": thinking}
    told = [{"type": "thinking", "thinking": "hm hm", "signature": ""}] if thinking == {"type": "adaptive"} else []
    answer = (await desk.ask("POST", "/v1/messages", body)).json
    assert answer["content"] == [*told, {"type": "text", "text": "Yes"}]
    assert answer["usage"]["output_tokens"] == len(THOUGHTFUL) + 1
    events = documents((await desk.ask("POST", "/v1/messages", {**body, "stream": True})).frames)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == ("hm hm" if told else "")
    assert [delta["text"] for delta in deltas if delta["type"] == "text_delta"] == ["Y", "e", "s"]


async def test_thoughts_cannot_be_asked_of_a_model_that_has_none(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda _: "Yes"))
    body = {"model": "org/m", "messages": MESSAGES, "thinking": {"type": "adaptive"}}
    for path, more in (("/v1/messages", {"max_tokens": 64}), ("/v1/messages/count_tokens", {})):
        reply = await desk.ask("POST", path, {**body, **more})
        assert reply.status == 400
        assert "'thinking.type'" in reply.json["error"]["message"]
