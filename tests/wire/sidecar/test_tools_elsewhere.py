"""Tool calls over the socket in the shapes of /v1/responses and /v1/messages, whole and streamed."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.protocol.speech.dialect import Dialect
from tests.fakes.engine import FakeEngine, language

Serve = Callable[..., Awaitable[Any]]
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
FLAT = [{"type": "function", "name": name} for name in ("f", "g")]
ANTHROPIC = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")]
RESPONSE: dict[str, Any] = {"model": "org/m", "input": "Hi", "tools": FLAT}
CHAT: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}], "tools": ANTHROPIC}
MESSAGE: dict[str, Any] = {**CHAT, "max_tokens": 64}
FIRST = '<tool_call>\n{"name": "f", "arguments": {"a": "ü}"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
BOTH = f"I look.\n{FIRST}\n{SECOND}"


async def desk_of(serve: Serve, answer: str) -> Any:
    desk = await serve(FakeEngine(lambda _: answer))
    desk.front.language = language(Dialect(tools="hermes"))
    return desk


def documents(reply: Any) -> list[dict[str, Any]]:
    return [json.loads(frame.partition("data: ")[2]) for frame in reply.frames if frame.startswith("event: ")]


async def test_a_response_has_calls_beside_its_message_and_tells_tools_back(serve: Serve) -> None:
    desk = await desk_of(serve, BOTH)
    answer = (await desk.ask("POST", RESPONSES, RESPONSE)).json
    message, first, second = answer["output"]
    assert (message["type"], message["content"][0]["text"], answer["status"]) == ("message", "I look.", "completed")
    told = [(call["type"], call["name"], call["arguments"], call["status"]) for call in (first, second)]
    assert told == [("function_call", "f", '{"a": "ü}"}', "completed"), ("function_call", "g", "{}", "completed")]
    assert first["id"].startswith("fc_")
    assert first["call_id"].startswith("call_")
    assert first["call_id"] != second["call_id"]
    assert answer["tools"] == [{**tool, "description": None, "parameters": None, "strict": False} for tool in FLAT]
    assert answer["tool_choice"] == "auto"
    events = documents(await desk.ask("POST", RESPONSES, {**RESPONSE, "stream": True}))
    begun = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [(item["type"], item.get("arguments")) for item in begun] == [
        *(("message", None), ("function_call", ""), ("function_call", ""))
    ]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["output_index"], event["name"], event["arguments"]) for event in done] == [
        *((1, "f", '{"a": "ü}"}'), (2, "g", "{}"))
    ]


async def test_a_response_of_calls_alone_has_no_message(serve: Serve) -> None:
    desk = await desk_of(serve, FIRST)
    assert [item["type"] for item in (await desk.ask("POST", RESPONSES, RESPONSE)).json["output"]] == ["function_call"]
    events = documents(await desk.ask("POST", RESPONSES, {**RESPONSE, "stream": True}))
    assert "response.content_part.added" not in {event["type"] for event in events}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, {**RESPONSE, "parallel_tool_calls": False}),
        (MESSAGES, {**MESSAGE, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    ],
)
async def test_without_parallel_calls_the_first_ends_the_answer(serve: Serve, path: str, body: dict[str, Any]) -> None:
    desk = await desk_of(serve, BOTH)
    answer = (await desk.ask("POST", path, body)).json
    assert [item["type"] for item in answer.get("output") or answer["content"]][1:] in (["function_call"], ["tool_use"])
    sequences = await desk.engine.opened.get()
    counted = len("I look.\n" + FIRST.partition("}}")[0]) + 1
    assert sequences.cancels == [(0, counted)]
    assert answer["usage"]["output_tokens"] == counted


async def test_a_message_has_calls_beside_its_text(serve: Serve) -> None:
    desk = await desk_of(serve, BOTH)
    answer = (await desk.ask("POST", MESSAGES, MESSAGE)).json
    text, first, second = answer["content"]
    assert (text, answer["stop_reason"]) == ({"type": "text", "text": "I look."}, "tool_use")
    assert [(call["type"], call["name"], call["input"]) for call in (first, second)] == [
        *(("tool_use", "f", {"a": "ü}"}), ("tool_use", "g", {}))
    ]
    assert first["id"].startswith("toolu_")
    assert first["id"] != second["id"]
    events = documents(await desk.ask("POST", MESSAGES, {**MESSAGE, "stream": True}))
    begun = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["type"], block.get("input")) for block in begun] == [
        *(("text", None), ("tool_use", {}), ("tool_use", {}))
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_that_a_limit_cut_are_told_as_they_can_be(serve: Serve, stream: bool) -> None:
    desk = await desk_of(serve, "")
    desk.engine.script = None
    for path, body in ((RESPONSES, RESPONSE), (MESSAGES, MESSAGE)):
        connection = await desk.connect()
        await connection.ask("POST", path, json.dumps({**body, "stream": stream}).encode())
        sequences = await desk.engine.opened.get()
        cut = FIRST.partition("}}")[0]
        sequences.give(cut, len(cut), "length")
        reply = await connection.reply()
        told = documents(reply) if stream else [reply.json]
        if path is RESPONSES:
            answer = told[-1]["response"] if stream else told[0]
            (call,) = answer["output"]
            assert (call["arguments"], call["status"], answer["status"]) == ('{"a": "ü}"', "incomplete", "incomplete")
        elif stream:
            partial = [event["delta"]["partial_json"] for event in told if event["type"] == "content_block_delta"]
            assert ("".join(partial), told[-2]["delta"]["stop_reason"]) == ('{"a": "ü}"', "max_tokens")
        else:
            assert (told[0]["content"][0]["input"], told[0]["stop_reason"]) == ({}, "max_tokens")


async def test_calls_that_must_come_are_refused_where_none_are_read(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda _: FIRST))
    for path, body in (
        (RESPONSES, {**RESPONSE, "tool_choice": "required"}),
        (MESSAGES, {**MESSAGE, "tool_choice": {"type": "any"}}),
    ):
        reply = await desk.ask("POST", path, body)
        assert reply.status == 400
        assert "api.tool_format" in reply.json["error"]["message"]


async def test_a_schema_that_no_grammar_follows_is_refused_by_the_tool_s_name(serve: Serve) -> None:
    desk = await desk_of(serve, FIRST)
    odd = {"properties": {"a": {"not": {}}}}
    flat, named = [{**FLAT[0], "parameters": odd}], [{"name": "f", "input_schema": odd}]
    for path, body in (
        (RESPONSES, {**RESPONSE, "tools": flat, "tool_choice": "required"}),
        (MESSAGES, {**MESSAGE, "tools": named, "tool_choice": {"type": "any"}}),
    ):
        reply = await desk.ask("POST", path, body)
        assert reply.status == 400
        assert "'f'" in reply.json["error"]["message"]
