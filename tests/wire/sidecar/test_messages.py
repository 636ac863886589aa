"""/v1/messages and its token counts over the socket: answers, streams, refusals, and failures on the way."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.settings import Api
from sidecar.wire.frames import Submit
from tests.fakes.engine import FakeEngine

Serve = Callable[..., Awaitable[Any]]
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
CHAT: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}]}
BODY: dict[str, Any] = {**CHAT, "max_tokens": 9}
STREAM: dict[str, Any] = {**BODY, "stream": True}
PREFILL: dict[str, Any] = {**BODY, "messages": [*BODY["messages"], {"role": "assistant", "content": "It is"}]}
PROXY = {"x_tollhouse_request_id": "req_proxy"}


def echo(submit: Submit) -> str:
    return "ok END"


def events(frames: list[str]) -> list[dict[str, Any]]:
    return [json.loads(frame.partition("data: ")[2]) for frame in frames if frame.startswith("event: ")]


async def test_a_message_is_answered_whole(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", MESSAGES, {**BODY, "stop_sequences": [" END"], "system": "S"})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json["content"] == [{"text": "ok", "type": "text"}]
    assert (reply.json["stop_reason"], reply.json["stop_sequence"]) == ("stop_sequence", " END")
    assert reply.json["usage"]["input_tokens"] == len("s:S.u:Hi.")
    assert reply.json["id"] == f"msg_{reply.headers['x-request-id'].removeprefix('req_')}"
    (line,) = [event for event in desk.events() if event["event"] == "request"]
    assert line["endpoint"] == MESSAGES


async def test_a_message_is_streamed_to_its_stop(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", MESSAGES, STREAM)
    assert (reply.status, reply.headers["content-type"], reply.clean) == (200, "text/event-stream", True)
    told = events(reply.frames)
    assert len(told) == len(reply.frames)
    assert [event["type"] for event in told if event["type"] != "content_block_delta"] == [
        *("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")
    ]
    assert "".join(event["delta"]["text"] for event in told[2:-3]) == "ok END"
    assert told[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


async def test_a_prefill_is_gone_on_with(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda submit: "".join(map(chr, submit.prompt_ids))))
    reply = await desk.ask("POST", MESSAGES, PREFILL)
    assert reply.json["content"][0]["text"] == "u:Hi.a:It is"


async def test_a_proxy_gets_the_usage_before_the_end(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", MESSAGES, STREAM, **PROXY)
    (at,) = [at for at, frame in enumerate(reply.frames) if frame.startswith(": tollhouse-usage")]
    assert json.loads(reply.frames[at].removeprefix(": tollhouse-usage "))["completion_tokens"] == 7
    assert [event["type"] for event in events(reply.frames[at:])][-1] == "message_stop"


async def test_the_tokens_are_those_of_the_answer(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    for body in (BODY, PREFILL, {**BODY, "system": [{"type": "text", "text": "S"}]}):
        asked = {name: value for name, value in body.items() if name != "max_tokens"}
        told = await desk.ask("POST", COUNT, asked)
        counted = await desk.ask("POST", "/internal/count", body, x_tollhouse_endpoint=MESSAGES)
        answered = await desk.ask("POST", MESSAGES, body)
        assert told.json == {"input_tokens": counted.json["prompt_tokens"]}
        assert told.json["input_tokens"] == answered.json["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "expected", "named"),
    [
        (MESSAGES, {**BODY, "tools": [{}]}, (400, "invalid_request_error"), "tools"),
        (MESSAGES, {**BODY, "messages": [{"role": "x"}]}, (400, "invalid_request_error"), "messages[0].role"),
        (MESSAGES, {**BODY, "max_tokens": 100}, (400, "invalid_request_error"), "maximum context length"),
        (MESSAGES, {**BODY, "model": "nobody"}, (404, "not_found_error"), "nobody"),
        (MESSAGES, b"[]", (400, "invalid_request_error"), "JSON object"),
        (COUNT, BODY, (400, "invalid_request_error"), "max_tokens"),
        (COUNT, {**CHAT, "model": "nobody"}, (404, "not_found_error"), "nobody"),
        (COUNT, {"messages": CHAT["messages"]}, (400, "invalid_request_error"), "model"),
    ],
)
async def test_a_refusal_is_anthropic_s(
    serve: Serve, path: str, body: Any, expected: tuple[int, str], named: str
) -> None:
    desk = await serve()
    reply = await desk.ask("POST", path, body)
    assert (reply.status, reply.json["error"]["type"], reply.json["type"]) == (*expected, "error")
    assert named in reply.json["error"]["message"]
    assert reply.json["request_id"] == reply.headers["x-request-id"]


async def test_other_refusals_are_anthropic_s_too_and_a_proxy_reads_openai_s(serve: Serve) -> None:
    desk = await serve()
    wrong = await desk.ask("GET", MESSAGES)
    assert (wrong.status, wrong.json["error"]["type"]) == (405, "invalid_request_error")
    told = await desk.ask("POST", MESSAGES, {**BODY, "n": 1}, **PROXY)
    assert (told.status, told.json["error"]["code"], told.json["error"]["param"]) == (400, "unknown_parameter", "n")
    desk.front.language = None
    away = await desk.ask("POST", COUNT, CHAT)
    assert (away.status, away.json["error"]["type"]) == (503, "overloaded_error")
    assert away.headers["retry-after"] == "5"


async def test_a_failure_on_the_way_is_an_error_event_and_a_broken_connection(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", MESSAGES, json.dumps(STREAM).encode())
    sequences = await desk.engine.opened.get()
    sequences.give("a", 1)
    sequences.fail()
    reply = await connection.reply()
    assert not reply.clean
    assert reply.frames[-1].startswith("event: error\n")
    assert events(reply.frames)[-1]["error"]["type"] == "api_error"


async def test_fields_that_nobody_knows_are_named_where_they_may_pass(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo), api=Api(unknown_fields="ignore"))
    for path, body in ((MESSAGES, {**BODY, "n": 2}), (COUNT, {**CHAT, "n": 2})):
        reply = await desk.ask("POST", path, body)
        assert (reply.status, reply.headers["x-tollhouse-ignored"]) == (200, "n")
