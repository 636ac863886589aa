"""Every refusal on the socket is an OpenAI error object with an id; models, state, requests and metrics answer."""

import gzip
import json
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import msgspec
import pytest

from sidecar.api.preparation import Preparation
from sidecar.protocol.choices import Choices
from sidecar.settings import Api
from sidecar.wire.frames import Step
from sidecar.wire.internal import RequestState, State
from tests.fakes.engine import FakeEngine

Serve = Callable[..., Awaitable[Any]]
CHAT: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/chat/completions", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_supported"),
        ("DELETE", "/v1/models/org/m", 405, "method_not_supported"),
        ("GET", "/v1/models/gpt-9", 404, "model_not_found"),
        ("GET", "/internal/requests/" + "a" * 41, 400, "invalid_value"),
        ("DELETE", "/internal/requests/a.b", 400, "invalid_value"),
    ],
)
async def test_a_refusal_is_an_error_object(serve: Serve, method: str, path: str, status: int, code: str) -> None:
    reply = await (await serve()).ask(method, path)
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    if status == 405:
        assert reply.headers["allow"]


async def test_a_body_declared_too_large_is_refused_before_it_is_read(serve: Serve) -> None:
    desk = await serve(api=Api(max_body_bytes=100))
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", b"", content_length="101")
    reply = await connection.reply()
    assert (reply.status, reply.json["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_grows_too_large_is_refused(serve: Serve) -> None:
    desk = await serve(api=Api(max_body_bytes=100))
    connection = await desk.connect()
    connection.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    connection.writer.write(b"65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n")
    reply = await connection.reply()
    assert (reply.status, reply.json["error"]["code"]) == (413, "request_too_large")


async def test_packed_bodies_are_refused_unopened(serve: Serve) -> None:
    body = gzip.compress(json.dumps(CHAT).encode())
    reply = await (await serve()).ask("POST", "/v1/chat/completions", body, content_encoding="gzip")
    assert (reply.status, reply.json["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_proxy_s_id_comes_back_and_a_strange_one_does_not(serve: Serve) -> None:
    desk = await serve()
    reply = await desk.ask("GET", "/v1/models", x_tollhouse_request_id="req_proxy")
    assert reply.headers["x-request-id"] == "req_proxy"
    reply = await desk.ask("POST", "/v1/chat/completions", CHAT, x_tollhouse_request_id="a b")
    assert (reply.status, reply.headers["x-request-id"][:4]) == (400, "req_")


async def test_a_defect_is_a_500_that_says_nothing(serve: Serve) -> None:
    engine = FakeEngine()

    def broken(request_id: str) -> RequestState:
        raise LookupError("inside")

    engine.usage = broken  # type: ignore[method-assign]  # a defect, planted
    desk = await serve(engine)
    reply = await desk.ask("GET", "/internal/requests/req_1")
    assert (reply.status, reply.json["error"]["type"]) == (500, "server_error")
    assert b"inside" not in reply.body
    (line,) = desk.events()
    assert (line["event"], line["exception"]) == ("handler_failed", "LookupError")


@pytest.mark.parametrize("path", ["/v1/models/org/m", "/v1/models/org%2Fm"])
async def test_the_model_is_told_with_its_window(serve: Serve, path: str) -> None:
    desk = await serve()
    model = {
        "id": "org/m",
        "object": "model",
        "created": 1700000000,
        "owned_by": "tollhouse",
        "max_model_len": 100,
        "root": "org/m",
        "parent": None,
        "tollhouse": {"precision": "fp32", "tier": "packed", "capabilities": ["chat", "completions"]},
    }
    assert (await desk.ask("GET", path)).json == model
    assert (await desk.ask("GET", "/v1/models")).json == {"object": "list", "data": [model]}


async def test_an_unknown_model_s_window_is_not_invented(serve: Serve) -> None:
    engine = FakeEngine()
    engine.ready, engine.reason, engine.info = False, "loading", None
    desk = await serve(engine)
    reply = await desk.ask("GET", "/v1/models")
    assert (reply.status, reply.json["error"]["code"]) == (503, "model_loading")
    state = msgspec.json.decode((await desk.ask("GET", "/internal/state")).body, type=State)
    assert (state.ready, state.reason, state.models) == (False, "loading", [])


async def test_the_state_is_what_a_proxy_reads(serve: Serve) -> None:
    engine = FakeEngine()
    engine.last_step = Step(7, [], 1, 0, 0, 1, 30, 120, 0.01, 0.02)
    engine.running, engine.waiting, engine.restarts, engine.heartbeat_age_s = 1, 2, 3, 0.5
    state = msgspec.json.decode((await (await serve(engine)).ask("GET", "/internal/state")).body, type=State)
    assert (state.ready, state.reason, state.steps, state.engine_pid) == (True, "", 7, 42)
    assert (state.running, state.waiting, state.restarts, state.heartbeat_age_s) == (1, 2, 3, 0.5)
    assert (state.kv_used_tokens, state.kv_capacity_tokens, state.max_queue) == (30, 120, 4)
    assert state.slots_path == "/nowhere/sidecar.slots"
    (model,) = state.models
    assert (model.id, model.max_context, model.fingerprint) == ("org/m", 100, "fp_1")
    assert model.bound is not None
    assert (model.bound.per_request, model.bound.per_message) == (1, 2)


async def test_the_openapi_document_is_that_of_the_settings(serve: Serve) -> None:
    document = (await (await serve(api=Api(max_choices=3))).ask("GET", "/internal/openapi")).json
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["n"]["maximum"] == 3
    assert document["info"]["version"] == version("tollhouse")


async def test_a_request_can_be_asked_for_and_ended(serve: Serve) -> None:
    desk = await serve()
    reply = await desk.ask("GET", "/internal/requests/req_known")
    assert reply.json == {"known": True, "running": True, "prompt_tokens": 3, "completion_tokens": 4}
    reply = await desk.ask("DELETE", "/internal/requests/req_known")
    assert reply.json == {"known": True, "running": False, "prompt_tokens": 3, "completion_tokens": 5}
    assert desk.engine.cancelled == ["req_known"]


async def test_a_count_refuses_what_a_run_would(serve: Serve) -> None:
    desk = await serve()
    reply = await desk.ask("POST", "/internal/count", {**CHAT, "temperature": 3})
    assert (reply.status, reply.json["error"]["param"]) == (400, "temperature")
    reply = await desk.ask("POST", "/internal/count", {"model": "org/m", "prompt": ["abc", [1, 2]]})
    assert reply.json == {"prompt_tokens": 5, "max_context": 100}


async def test_the_metrics_page_counts_what_ran(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda _: "ok"))
    desk.engine.restarts = 2
    await desk.ask("POST", "/v1/chat/completions", CHAT)
    # The second scrape counts nothing twice.
    for lines in [await scraped(desk), await scraped(desk)]:
        assert 'tollhouse_sidecar_requests_total{finish_reason="stop",model="org/m"} 1.0' in lines
        assert "tollhouse_sidecar_generation_tokens_total 3.0" in lines
        assert "tollhouse_sidecar_request_prompt_tokens_sum 5.0" in lines
        assert "tollhouse_sidecar_time_to_first_token_seconds_count 1.0" in lines
        assert "tollhouse_sidecar_engine_restarts_total 2.0" in lines
        assert len(lines) < 2000


async def scraped(desk: Any) -> list[str]:
    reply = await desk.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return list(reply.body.decode().splitlines())


async def test_a_stranger_is_sent_away_unheard(serve: Serve) -> None:
    desk = await serve(allowed=frozenset({12345}))
    connection = await desk.connect()
    assert await connection.reader.read() == b""
    (line,) = desk.events()
    assert line["event"] == "peer_refused"


async def test_each_line_of_a_request_has_its_trace(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether spans are sent or not; here none are."""
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace_id}-{span_id}-00"}
    encoder = FakeEngine()
    desk = await serve(encoder=encoder)

    async def ask(engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
        connection = await desk.connect()
        await connection.ask("POST", path, json.dumps(body).encode(), **headers)
        (await engine.opened.get()).fail()
        await connection.reply()

    await desk.ask("POST", "/v1/chat/completions", {**CHAT, "temperature": 3}, **headers)
    await ask(desk.engine, "/v1/chat/completions", CHAT)
    await ask(encoder, "/v1/embeddings", {"model": "org/e", "input": "Hi"})
    monkeypatch.setattr(Choices, "take", lambda *_: 1 / 0)
    await ask(desk.engine, "/v1/chat/completions", CHAT)
    monkeypatch.setattr(Preparation, "plan", lambda *_: 1 / 0)
    await desk.ask("POST", "/v1/chat/completions", CHAT, **headers)
    lines = desk.events()
    events = {"request", "request_refused", "sequence_failed", "request_failed", "handler_failed"}
    assert {line["event"] for line in lines} == events
    assert {(line.get("trace_id"), line.get("span_id")) for line in lines} == {(trace_id, span_id)}
    assert all(line["request_id"].startswith("req_") for line in lines)
