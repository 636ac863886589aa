"""Embeddings over the socket: answers, refusals before the engine and failures after it, and what is counted."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from sidecar.wire.errors import unavailable
from tests.fakes.engine import READY, FakeEngine

Serve = Callable[..., Awaitable[Any]]
BODY: dict[str, Any] = {"model": "org/e", "input": ["Hi", "you"]}
PROXY = {"x_tollhouse_request_id": "req_proxy"}
PATH = "/v1/embeddings"


@pytest.fixture
def encoder() -> FakeEngine:
    engine = FakeEngine()
    engine.info = msgspec.structs.replace(READY, tier="encoder", embedding_size=2)
    return engine


async def ask(desk: Any, document: object, **headers: str) -> Any:
    connection = await desk.connect()
    await connection.ask("POST", PATH, json.dumps(document).encode(), **headers)
    return connection


def requests(desk: Any) -> list[dict[str, Any]]:
    return [line for line in desk.events() if line["event"] == "request"]


async def outcomes(desk: Any, outcome: str) -> float:
    page = (await desk.ask("GET", "/metrics")).body.decode()
    name = f'tollhouse_sidecar_embedding_requests_total{{outcome="{outcome}"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


async def test_vectors_are_in_the_order_of_their_inputs(serve: Serve, encoder: FakeEngine) -> None:
    desk = await serve(encoder=encoder)
    connection = await ask(desk, BODY)
    sequences = await encoder.opened.get()
    assert [submit.prompt_ids for submit in sequences.submits] == [[72, 105], [121, 111, 117]]
    sequences.give_vector([0.0, 1.0], index=1)
    sequences.give_vector([1.0, 0.0], index=0)
    reply = await connection.reply()
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert [one["embedding"] for one in reply.json["data"]] == [[1.0, 0.0], [0.0, 1.0]]
    assert reply.json["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert reply.headers["x-tollhouse-prompt-tokens"] == "5"
    await asyncio.wait_for(sequences.left.wait(), 10)
    (line,) = requests(desk)
    assert (line["endpoint"], line["count"], line["prompt_tokens"], line["ending"]) == (PATH, 2, 5, "complete")
    assert "refused" not in line
    assert await outcomes(desk, "complete") == 1


async def test_base64_as_the_sdk_asks_for(serve: Serve, encoder: FakeEngine) -> None:
    desk = await serve(encoder=encoder)
    connection = await ask(desk, {**BODY, "input": "Hi", "encoding_format": "base64"})
    (await encoder.opened.get()).give_vector([1.0, 0.0])
    (one,) = (await connection.reply()).json["data"]
    assert base64.b64decode(one["embedding"]) == b"\x00\x00\x80\x3f\x00\x00\x00\x00"


@pytest.mark.parametrize("headers", [{}, PROXY])
async def test_a_refusal_by_the_engine_is_an_answer_for_a_proxy_too(
    serve: Serve, encoder: FakeEngine, headers: dict[str, str]
) -> None:
    encoder.refusal = unavailable("The server is overloaded.", code="server_is_overloaded", retry_after_s=1)
    desk = await serve(encoder=encoder)
    reply = await (await ask(desk, BODY, **headers)).reply()
    assert (reply.status, reply.json["error"]["code"]) == (503, "server_is_overloaded")
    assert requests(desk) == []


@pytest.mark.parametrize("end", ["lose", "fail"])
async def test_a_failure_after_acceptance_is_an_error_for_a_client_and_a_cut_for_a_proxy(
    serve: Serve, encoder: FakeEngine, end: str
) -> None:
    desk = await serve(encoder=encoder)
    for headers, status in (({}, 503 if end == "lose" else 500), (PROXY, 0)):
        connection = await ask(desk, BODY, **headers)
        sequences = await encoder.opened.get()
        getattr(sequences, end)()
        reply = await connection.reply()
        assert (reply.status, reply.clean) == (status, bool(status))
    assert [line["ending"] for line in requests(desk)] == ["failed", "failed"]
    assert await outcomes(desk, "failed") == 2


async def test_a_client_that_leaves_frees_its_rows(serve: Serve, encoder: FakeEngine) -> None:
    desk = await serve(encoder=encoder)
    connection = await ask(desk, BODY)
    sequences = await encoder.opened.get()
    connection.leave()
    await asyncio.wait_for(sequences.left.wait(), 10)
    assert await outcomes(desk, "client_gone") == 1
    assert [line["ending"] for line in requests(desk)] == ["client_gone"]


async def test_a_prompt_beyond_its_reservation_is_refused(serve: Serve, encoder: FakeEngine) -> None:
    desk = await serve(encoder=encoder)
    reply = await (await ask(desk, BODY, **PROXY, x_tollhouse_max_total_tokens="4")).reply()
    assert (reply.status, reply.json["error"]["code"]) == (400, "reservation_exceeded")
    assert encoder.opened.empty()


@pytest.mark.parametrize("served", [True, False])
async def test_a_model_that_gives_no_embeddings_is_told_from_one_that_is_not_there(
    serve: Serve, encoder: FakeEngine, served: bool
) -> None:
    desk = await serve(encoder=encoder if served else None)
    for path in (PATH, "/internal/count"):
        reply = await desk.ask("POST", path, {**BODY, "model": "org/m"})
        assert (reply.status, reply.json["error"]["code"]) == (400, "unsupported_endpoint")
        reply = await desk.ask("POST", path, {**BODY, "model": "nobody"})
        assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")


async def test_a_count_is_of_the_model_that_the_body_is_for(serve: Serve, encoder: FakeEngine) -> None:
    encoder.info = msgspec.structs.replace(READY, max_context=50, embedding_size=2)
    desk = await serve(encoder=encoder)
    reply = await desk.ask("POST", "/internal/count", BODY, **PROXY, x_tollhouse_max_total_tokens="1")
    assert reply.json == {"prompt_tokens": 5, "max_context": 50}
    # What has a prompt is a completion, whatever else stands beside it.
    reply = await desk.ask("POST", "/internal/count", {"model": "org/m", "prompt": "Once"})
    assert reply.json == {"prompt_tokens": 4, "max_context": 100}
    reply = await desk.ask("POST", "/internal/count", {"model": "org/m", "prompt": "Once", "input": "x"})
    assert reply.json["error"]["code"] == "unknown_parameter"


async def test_models_are_listed_as_soon_as_they_are_known(serve: Serve, encoder: FakeEngine) -> None:
    desk = await serve(encoder=encoder)

    async def listed() -> list[str]:
        return [model["id"] for model in (await desk.ask("GET", "/v1/models")).json["data"]]

    assert await listed() == ["org/m", "org/e"]
    info, encoder.info = encoder.info, None
    assert await listed() == ["org/m"]
    assert (await desk.ask("GET", "/v1/models/org/e")).json["error"]["code"] == "model_loading"
    desk.engine.info, encoder.info = None, info
    assert await listed() == ["org/e"]
    encoder.info = None
    reply = await desk.ask("GET", "/v1/models")
    assert (reply.status, reply.json["error"]["code"]) == (503, "model_loading")


async def test_the_metrics_page_tells_of_both_engines(serve: Serve, encoder: FakeEngine) -> None:
    desk = await serve(encoder=encoder)
    desk.engine.restarts, encoder.restarts = 1, 2
    lines = (await desk.ask("GET", "/metrics")).body.decode().splitlines()
    assert "tollhouse_sidecar_engine_restarts_total 3.0" in lines
    for model in ("org/m", "org/e"):
        assert f'tollhouse_sidecar_memory_bytes{{kind="weights",model="{model}"}} 1000.0' in lines
        assert len([line for line in lines if line.startswith("tollhouse_sidecar_model_info{") and model in line]) == 1
