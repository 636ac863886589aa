"""Tool calls over the socket: whole and streamed, their ends, and what is charged."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.protocol.speech.dialect import Dialect
from tests.fakes.engine import FakeEngine, language

Serve = Callable[..., Awaitable[Any]]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
CHAT: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}
FUNCTIONS = {**{k: v for k, v in CHAT.items() if k != "tools"}, "functions": [tool["function"] for tool in TOOLS]}
FIRST = '<tool_call>\n{"name": "f", "arguments": {"a": "ü}"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
BOTH = f"I look.\n{FIRST}\n{SECOND}"
ARGUMENTS = '{"a": "ü}"}'


async def desk_of(serve: Serve, answer: str, *, thinks: bool = False) -> Any:
    desk = await serve(FakeEngine(lambda _: answer))
    desk.front.language = language(Dialect(thinks, "hermes"))
    return desk


def chunks_of(reply: Any) -> list[dict[str, Any]]:
    return [json.loads(frame.removeprefix("data: ")) for frame in reply.frames if frame.startswith("data: {")]


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a client makes of a choice's deltas: ids, names and types must come once."""
    content, calls, reason = None, [], None
    for chunk in (chunk for told in chunks for chunk in told["choices"] if chunk["index"] == index):
        if (text := chunk["delta"].get("content")) is not None:
            content = (content or "") + text
        for call in chunk["delta"].get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(calls)
                assert call["function"]["arguments"] == ""
                calls.append({key: value for key, value in call.items() if key != "index"})
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        reason = chunk["finish_reason"] or reason
    return {"content": content, "tool_calls": calls, "finish_reason": reason}


async def both_ways(desk: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The first choice; streamed it must be the same."""
    choice = (await desk.ask("POST", "/v1/chat/completions", body)).json["choices"][0]
    streamed = joined(chunks_of(await desk.ask("POST", "/v1/chat/completions", {**body, "stream": True})))
    calls = [{**call, "id": call["id"][:5]} for call in choice["message"].get("tool_calls", [])]
    assert [{**call, "id": call["id"][:5]} for call in streamed["tool_calls"]] == calls
    assert streamed["content"] == choice["message"]["content"]
    assert streamed["finish_reason"] == choice["finish_reason"]
    return dict(choice)


async def test_calls_are_told_beside_the_text_whole_and_streamed(serve: Serve) -> None:
    choice = await both_ways(await desk_of(serve, BOTH), CHAT)
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == ("I look.", "tool_calls")
    called = [(call["type"], call["function"]) for call in message["tool_calls"]]
    assert called == [
        ("function", {"name": "f", "arguments": ARGUMENTS}),
        ("function", {"name": "g", "arguments": "{}"}),
    ]
    ids = {call["id"] for call in message["tool_calls"]}
    assert len(ids) == 2
    assert all(name.startswith("call_") for name in ids)


async def test_an_answer_of_calls_alone_has_no_content(serve: Serve) -> None:
    message = (await both_ways(await desk_of(serve, FIRST), CHAT))["message"]
    assert message["content"] is None
    assert "reasoning" not in message
    assert "function_call" not in message


async def test_calls_come_behind_thoughts(serve: Serve) -> None:
    message = (await both_ways(await desk_of(serve, f"<think>hm</think>\n{FIRST}", thinks=True), CHAT))["message"]
    assert (message["content"], message["reasoning"], len(message["tool_calls"])) == (None, "hm", 1)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({**CHAT, "tool_choice": "none"}, FIRST),
        ({key: value for key, value in CHAT.items() if key != "tools"}, FIRST),
        (CHAT, FIRST.replace('"f"', '"h"')),
        (
            {**CHAT, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": TOOLS[1:]}}},
            FIRST,
        ),
    ],
)
async def test_what_may_not_be_called_is_text(serve: Serve, body: dict[str, Any], answer: str) -> None:
    choice = await both_ways(await desk_of(serve, answer), body)
    assert (choice["message"]["content"], choice["finish_reason"]) == (answer, "stop")
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_without_parallel_calls_the_first_ends_the_answer_and_what_is_charged(serve: Serve, stream: bool) -> None:
    desk = await desk_of(serve, BOTH)
    body = {**CHAT, "parallel_tool_calls": False, "stream": stream, "logprobs": True}
    reply = await desk.ask("POST", "/v1/chat/completions", body)
    sequences = await desk.engine.opened.get()
    counted = len("I look.\n" + FIRST.partition("}}")[0]) + 1
    assert sequences.cancels == [(0, counted)]
    if stream:
        told = joined(chunks_of(reply))
        assert ([call["function"]["name"] for call in told["tool_calls"]], told["finish_reason"]) == (
            ["f"],
            "tool_calls",
        )
    else:
        assert reply.json["usage"]["completion_tokens"] == counted
        assert len(reply.json["choices"][0]["logprobs"]["content"]) == counted
        assert [call["function"]["arguments"] for call in reply.json["choices"][0]["message"]["tool_calls"]] == [
            ARGUMENTS
        ]


async def test_functions_are_answered_with_a_function_call(serve: Serve) -> None:
    desk = await desk_of(serve, BOTH)
    choice = (await desk.ask("POST", "/v1/chat/completions", FUNCTIONS)).json["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": ARGUMENTS}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    chunks = chunks_of(await desk.ask("POST", "/v1/chat/completions", {**FUNCTIONS, "stream": True}))
    calls = [call for chunk in chunks if (call := chunk["choices"][0]["delta"].get("function_call"))]
    assert calls[0] == {"name": "f", "arguments": ""}
    assert all(set(call) == {"arguments"} for call in calls[1:])
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("size", "content", "arguments"),
    [(len(FIRST) - 16, None, '{"a": "ü}'), (20, FIRST[:20], None)],
)
async def test_what_a_limit_cuts_is_told_as_far_as_it_came(
    serve: Serve, size: int, content: str | None, arguments: str | None
) -> None:
    desk = await desk_of(serve, "")
    desk.engine.script = None
    for stream in (False, True):
        body = {**CHAT, "stream": stream}
        connection = await desk.connect()
        await connection.ask("POST", "/v1/chat/completions", json.dumps(body).encode())
        sequences = await desk.engine.opened.get()
        sequences.give(FIRST[:size], size, "length")
        reply = await connection.reply()
        told = joined(chunks_of(reply)) if stream else reply.json["choices"][0]
        message = told if stream else told["message"]
        assert (message["content"], told["finish_reason"]) == (content, "length")
        found = [call["function"]["arguments"] for call in message.get("tool_calls", [])]
        assert found == ([] if arguments is None else [arguments])


async def test_each_choice_has_calls_of_its_own(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda submit: FIRST if submit.index else SECOND))
    desk.front.language = language(Dialect(tools="hermes"))
    reply = await desk.ask("POST", "/v1/chat/completions", {**CHAT, "n": 2})
    calls = [choice["message"]["tool_calls"][0] for choice in reply.json["choices"]]
    assert [call["function"]["name"] for call in calls] == ["g", "f"]
    assert len({call["id"] for call in calls}) == 2
    chunks = chunks_of(await desk.ask("POST", "/v1/chat/completions", {**CHAT, "n": 2, "stream": True}))
    assert [joined(chunks, index)["tool_calls"][0]["function"]["name"] for index in (0, 1)] == ["g", "f"]
