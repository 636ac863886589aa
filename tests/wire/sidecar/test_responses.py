"""/v1/responses over the socket: whole, streamed, failed, counted, and what a proxy is told."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.wire.frames import Finish, Submit
from tests.fakes.engine import FakeEngine

Serve = Callable[..., Awaitable[Any]]
URL = "/v1/responses"
BODY: dict[str, Any] = {"model": "org/m", "input": "Hi"}
STREAM: dict[str, Any] = {**BODY, "stream": True}
PROXY = {"x_tollhouse_request_id": "req_proxy"}


def answer(_: Submit) -> str:
    return "ok"


def documents(frames: list[str]) -> list[dict[str, Any]]:
    found = [frame.partition("\ndata: ")[2] for frame in frames if frame.startswith("event: ")]
    return [json.loads(data) for data in found]


async def test_a_response_is_answered_whole(serve: Serve) -> None:
    desk = await serve(FakeEngine(answer))
    reply = await desk.ask("POST", URL, {**BODY, "instructions": "Be"})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json["output"][0]["content"][0]["text"] == "ok"
    assert (reply.json["status"], reply.json["store"], reply.json["instructions"]) == ("completed", False, "Be")
    assert reply.json["id"] == f"resp_{reply.headers['x-request-id'].removeprefix('req_')}"
    # "s:Be." and "u:Hi." are the prompt; two letters and the end of sequence are the answer.
    assert (reply.json["usage"]["input_tokens"], reply.json["usage"]["output_tokens"]) == (10, 3)
    assert reply.headers["x-tollhouse-prompt-tokens"] == "10"
    (line,) = [event for event in desk.events() if event["event"] == "request"]
    assert (line["endpoint"], line["ending"]) == (URL, "complete")


async def test_a_response_is_streamed_to_its_last_event(serve: Serve) -> None:
    desk = await serve(FakeEngine(answer))
    reply = await desk.ask("POST", URL, STREAM)
    assert (reply.status, reply.headers["content-type"], reply.clean) == (200, "text/event-stream", True)
    events = documents(reply.frames)
    assert len(events) == len(reply.frames)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "ok"
    assert events[-1]["type"] == "response.completed"
    assert b"[DONE]" not in reply.body


async def test_an_answer_that_a_limit_cut_is_incomplete(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", URL, json.dumps({**BODY, "max_output_tokens": 2}).encode())
    sequences = await desk.engine.opened.get()
    assert sequences.submits[0].max_new_tokens == 2
    sequences.give("ok", 2, Finish.LENGTH)
    reply = await connection.reply()
    assert (reply.json["status"], reply.json["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_a_proxy_gets_the_usage_before_anything_is_done(serve: Serve) -> None:
    desk = await serve(FakeEngine(answer))
    reply = await desk.ask("POST", URL, STREAM, **PROXY)
    (at,) = [at for at, frame in enumerate(reply.frames) if frame.startswith(": tollhouse-usage")]
    assert json.loads(reply.frames[at].removeprefix(": tollhouse-usage "))["completion_tokens"] == 3
    assert documents(reply.frames[at:])[0]["type"] == "response.output_text.done"


async def test_what_a_proxy_stores_is_told_back_in_every_event(serve: Serve) -> None:
    desk = await serve(FakeEngine(answer))
    store = {"x_tollhouse_stored": "1", "x_tollhouse_previous_response": "resp_0"}
    whole = await desk.ask("POST", URL, BODY, **PROXY, **store)
    assert (whole.json["store"], whole.json["previous_response_id"]) == (True, "resp_0")
    streamed = await desk.ask("POST", URL, STREAM, x_tollhouse_request_id="req_2", **store)
    told = [event["response"] for event in documents(streamed.frames) if "response" in event]
    assert len(told) == 3
    assert {(response["store"], response["previous_response_id"]) for response in told} == {(True, "resp_0")}


@pytest.mark.parametrize(("name", "value"), [("store", True), ("previous_response_id", "resp_0")])
async def test_no_body_makes_a_sidecar_claim_a_store(serve: Serve, name: str, value: Any) -> None:
    desk = await serve(FakeEngine(answer))
    reply = await desk.ask("POST", URL, {**BODY, name: value}, **PROXY)
    assert (reply.status, reply.json["error"]["param"]) == (400, name)


async def test_an_engine_lost_in_a_stream_is_a_failed_response_and_no_proper_end(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", URL, json.dumps(STREAM).encode())
    sequences = await desk.engine.opened.get()
    sequences.give("a", 1)
    sequences.lose()
    reply = await connection.reply()
    assert (reply.status, reply.clean) == (200, False)
    failed = documents(reply.frames)[-1]
    assert (failed["type"], failed["response"]["error"]["code"]) == ("response.failed", "server_error")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
        ({"input": "x" * 9000}, 400, "input"),
        ({"max_output_tokens": 100_000}, 400, "input"),
        ({"model": "org/other"}, 404, "model"),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    serve: Serve, fields: dict[str, Any], status: int, param: str
) -> None:
    desk = await serve()
    reply = await desk.ask("POST", URL, BODY | fields)
    assert (reply.status, reply.json["error"]["param"]) == (status, param)


@pytest.mark.parametrize("path", [f"{URL}/resp_1", f"{URL}/input_tokens", f"{URL}/resp_1/cancel"])
async def test_there_is_nothing_below(serve: Serve, path: str) -> None:
    desk = await serve()
    reply = await desk.ask("POST", path, BODY)
    assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_url")


async def test_a_count_is_of_the_endpoint_that_is_told(serve: Serve) -> None:
    desk = await serve()
    counted = await desk.ask("POST", "/internal/count", BODY, x_tollhouse_endpoint=URL)
    assert counted.json["prompt_tokens"] == 5
    unknown = await desk.ask("POST", "/internal/count", BODY, x_tollhouse_endpoint="/v1/other")
    assert (unknown.status, unknown.json["error"]["code"]) == (400, "invalid_value")
