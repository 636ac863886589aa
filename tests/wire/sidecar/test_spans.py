"""The spans of what a proxy sampled: one of the request, and one for each of the engine's phases that it came to."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar import spans
from sidecar.spans import Kind, Span
from sidecar.wire.errors import unavailable
from tests.fakes.engine import FakeEngine

Serve = Callable[..., Awaitable[Any]]
TRACE_ID, CALL_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHAT: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"
WAIT_S = 10.0
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{CALL_ID}-01", "x_tollhouse_request_id": "req_proxy"}


class FakeTracer:
    """Mutable: `sent`."""

    def __init__(self) -> None:
        self.sent: list[Span] = []
        self.more = asyncio.Event()

    def samples(self, trace_id: str, parent_id: str, *, parent_sampled: bool) -> bool:
        raise AssertionError("the proxy decides")

    def send(self, span: Span) -> None:
        self.sent.append(span)
        self.more.set()

    def close(self) -> None:
        pass

    async def told(self) -> list[Span]:
        """All of a request's: they are sent at once, after its answer."""
        async with asyncio.timeout(WAIT_S):
            await self.more.wait()
        return self.sent


@pytest.fixture
def tracer() -> FakeTracer:
    return FakeTracer()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_a_span_and_one_of_each_phase(serve: Serve, tracer: FakeTracer, stream: bool) -> None:
    desk = await serve(FakeEngine(lambda submit: "ok"), tracer=tracer)
    assert (await desk.ask("POST", PATH, CHAT | {"stream": stream}, **SAMPLED)).status == 200
    served, *phases = await tracer.told()
    assert (served.name, served.kind, served.remote) == (f"POST {PATH}", Kind.SERVER, True)
    assert (served.trace_id, served.parent_id, served.failed) == (TRACE_ID, CALL_ID, False)
    assert served.attributes == {
        spans.METHOD: "POST",
        spans.ROUTE: PATH,
        spans.REQUEST_ID: "req_proxy",
        spans.STATUS: 200,
        spans.MODEL: "org/m",
        spans.ENGINE_PROMPT_TOKENS: 5,
        spans.ENGINE_COMPLETION_TOKENS: 3,
        spans.ENGINE_CACHED_TOKENS: 0,
        spans.ENGINE_FINISH_REASON: "stop",
    }
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    assert {(phase.trace_id, phase.parent_id, phase.kind) for phase in phases} == {
        (TRACE_ID, served.span_id, Kind.INTERNAL)
    }
    assert len({span.span_id for span in tracer.sent}) == 4
    edges = [served.start_ns, *(edge for phase in phases for edge in (phase.start_ns, phase.end_ns)), served.end_ns]
    assert edges == sorted(edges)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        SAMPLED | {"traceparent": f"00-{TRACE_ID}-{CALL_ID}-00"},
        SAMPLED | {"traceparent": f"00-{'0' * 32}-{CALL_ID}-01"},
    ],
)
async def test_what_no_proxy_sampled_has_none(serve: Serve, tracer: FakeTracer, headers: dict[str, str]) -> None:
    desk = await serve(FakeEngine(lambda submit: "ok"), tracer=tracer)
    assert (await desk.ask("POST", PATH, CHAT, **headers)).status == 200
    assert tracer.sent == []


@pytest.mark.parametrize(
    ("refusal", "more", "error", "failed"),
    [
        (None, {"top_k": "x"}, "400", False),
        (unavailable("Full.", code="server_is_overloaded", retry_after_s=1), {}, "503", True),
    ],
)
async def test_a_refused_request_has_one_span(
    serve: Serve, tracer: FakeTracer, refusal: Any, more: dict[str, Any], error: str, *, failed: bool
) -> None:
    engine = FakeEngine()
    engine.refusal = refusal
    desk = await serve(engine, tracer=tracer)
    await desk.ask("POST", PATH, CHAT | more, **SAMPLED)
    (span,) = await tracer.told()
    assert (span.attributes[spans.ERROR_TYPE], span.attributes[spans.STATUS]) == (error, int(error))
    assert span.failed is failed


async def test_a_client_that_leaves_is_no_fault(serve: Serve, tracer: FakeTracer) -> None:
    desk = await serve(tracer=tracer)
    connection = await desk.connect()
    await connection.ask("POST", PATH, json.dumps(CHAT).encode(), **SAMPLED)
    await desk.engine.opened.get()
    connection.leave()
    (span,) = await tracer.told()
    assert (span.attributes[spans.ERROR_TYPE], span.failed) == ("client_gone", False)
    assert spans.STATUS not in span.attributes


async def test_an_engine_that_is_lost_fails_the_span(serve: Serve, tracer: FakeTracer) -> None:
    desk = await serve(tracer=tracer)
    connection = await desk.connect()
    await connection.ask("POST", PATH, json.dumps(CHAT | {"stream": True}).encode(), **SAMPLED)
    sequences = await desk.engine.opened.get()
    sequences.give("ok", 2)
    sequences.lose()
    await connection.reply()
    span, *phases = await tracer.told()
    assert (span.attributes[spans.ERROR_TYPE], span.failed) == ("upstream_unavailable", True)
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]


async def test_embeddings_have_a_span(serve: Serve, tracer: FakeTracer) -> None:
    desk = await serve(tracer=tracer)
    await desk.ask("POST", "/v1/embeddings", {"model": "org/e", "input": "x"}, **SAMPLED)
    (span,) = await tracer.told()
    assert (span.name, span.attributes[spans.ROUTE]) == ("POST /v1/embeddings", "/v1/embeddings")
