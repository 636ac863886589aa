"""What a collector is sent of requests: the spans of a sampled one, whatever became of it, and no word of anybody's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from sidecar import spans
from sidecar.yamlfile import ConfigInvalidError
from tests.fakes.collector import Collector, Seen, collector
from tests.fakes.sidecar import ABORT, MODEL, delta
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import WAIT_S, Answer, House, chat, request

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the words of a prompt"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as running:
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
async def house(build: Build, receiver: Collector) -> AsyncIterator[House]:
    async with build() as running:
        yield running


async def asked(house: House, key: str | None, body: Any = b"", traceparent: str = TRACEPARENT, **more: Any) -> Answer:
    wire = await house.connect()
    await wire.send(request(key, body, headers={"traceparent": traceparent}, **more))
    async with asyncio.timeout(WAIT_S):
        return await wire.answer()


async def arrived(receiver: Collector, *names: str) -> list[Seen]:
    """The spans, once those of these names are here; in this order."""
    found = await asyncio.to_thread(receiver.wait, lambda seen: len(seen) >= len(names))
    return sorted(found, key=lambda span: names.index(span.name))


SERVER = "POST /v1/chat/completions"
CALL = f"chat {MODEL}"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_has_a_span_of_the_proxy_and_one_of_its_call(
    house: House, receiver: Collector, stream: bool
) -> None:
    key = await house.key()
    messages = [{"role": "user", "content": SECRET}]
    await asked(house, key, chat(stream=stream, messages=messages, temperature=0.5, top_p=0.9, seed=7, user=SECRET))
    served, called = await arrived(receiver, SERVER, CALL)
    line = await house.line()
    (received,) = house.sidecar.received
    assert (served.trace_id, served.parent_id, served.span_id) == (TRACE_ID, PARENT_ID, line["span_id"])
    assert (called.trace_id, called.parent_id) == (TRACE_ID, served.span_id)
    assert received.headers["traceparent"] == f"00-{TRACE_ID}-{called.span_id}-01"
    assert (served.kind, called.kind, served.failed, called.failed) == ("server", "client", False, False)
    assert served.start_ns <= called.start_ns <= called.end_ns <= served.end_ns
    assert called.events == ([spans.ANSWER_BEGINS] if stream else [])
    assert served.attributes == {
        spans.METHOD: "POST",
        spans.ROUTE: "/v1/chat/completions",
        spans.STATUS: 200,
        spans.REQUEST_ID: line["request_id"],
        spans.ENDING: "complete",
        spans.ACCOUNT_ID: line["account_id"],
        spans.KEY_ID: line["key_id"],
        spans.TIER: "open",
        spans.UPSTREAM: "local",
    }
    assert called.attributes == {
        spans.OPERATION: "chat",
        spans.PROVIDER: "tollhouse",
        spans.REQUEST_MODEL: MODEL,
        spans.STREAM: stream,
        spans.MAX_TOKENS: 8,
        spans.TEMPERATURE: 0.5,
        spans.TOP_P: 0.9,
        spans.SEED: 7,
        spans.INPUT_TOKENS: 7,
        spans.OUTPUT_TOKENS: 3,
        spans.CACHED_TOKENS: 2 if stream else 0,
        spans.REASONING_TOKENS: 1 if stream else 0,
        spans.RESPONSE_MODEL: MODEL,
        spans.FINISH_REASONS: ["stop"],
        spans.RESPONSE_ID: f"chatcmpl-{line['request_id'].removeprefix('req_')}",
    }
    for word in (SECRET, "Hello", key):
        assert word.encode() not in b"".join(receiver.bodies)


@pytest.mark.parametrize(
    ("tier", "more", "name", "status", "error"),
    [
        ("none", {"body": chat()}, SERVER, 401, "invalid_request_error"),
        ("open", {"body": chat(model=SECRET)}, SERVER, 404, "model_not_found"),
        ("open", {"body": b"{"}, SERVER, 400, "invalid_request_error"),
        ("open", {"path": f"/{SECRET.replace(' ', '/')}"}, "POST _other", 404, "unknown_url"),
        ("open", {"path": "/v1/models", "method": "BREW"}, "HTTP _other", 400, "invalid_request_error"),
    ],
)
async def test_a_refused_request_has_one_span_that_says_why(
    house: House, receiver: Collector, *, tier: str, more: dict[str, Any], name: str, status: int, error: str
) -> None:
    key = None if tier == "none" else await house.key(tier)
    assert (await asked(house, key, more.pop("body", b""), **more)).status == status
    (span,) = await arrived(receiver, name)
    assert (span.attributes[spans.STATUS], span.attributes[spans.ERROR_TYPE]) == (status, error)
    assert span.attributes[spans.METHOD] == ("_OTHER" if more.get("method") else "POST")
    assert not span.failed
    assert SECRET.encode() not in b"".join(receiver.bodies)


async def test_what_a_rule_refuses_names_the_rule(house: House, receiver: Collector) -> None:
    key = await house.key("one")
    await asked(house, key, chat(), traceparent=TRACEPARENT[:-1] + "0")
    assert (await asked(house, key, chat())).status == 429
    (span,) = await arrived(receiver, SERVER)
    assert (span.attributes[spans.RULE], span.attributes[spans.ENDING]) == ("requests_per_minute", "refused")


async def test_a_sidecar_that_breaks_off_fails_both_spans(house: House, receiver: Collector) -> None:
    house.sidecar.script = [delta("Hello"), ABORT]
    await asked(house, await house.key(), chat())
    for span in await arrived(receiver, SERVER, CALL):
        assert (span.failed, span.attributes[spans.ERROR_TYPE]) == (True, "upstream_unavailable")


async def test_the_client_decides_whether_its_request_is_sampled(house: House, receiver: Collector) -> None:
    key = await house.key()
    await asked(house, key, chat(), traceparent=TRACEPARENT[:-1] + "0")
    await asked(house, key, chat())
    assert {span.trace_id for span in await arrived(receiver, SERVER, CALL)} == {TRACE_ID}
    first, second = house.sidecar.received
    assert (first.headers["traceparent"][-2:], second.headers["traceparent"][-2:]) == ("00", "01")
    assert len(receiver.spans()) == 2


async def test_a_request_without_a_trace_begins_one(house: House, receiver: Collector) -> None:
    await asked(house, await house.key(), chat(), traceparent="")
    served, called = await arrived(receiver, SERVER, CALL)
    assert (served.parent_id, called.parent_id) == ("", served.span_id)
    assert served.trace_id == called.trace_id == (await house.line())["trace_id"]


@pytest.mark.parametrize(
    ("sampler", "argument", "sampled"), [("always_off", "", 0), ("traceidratio", "0.0", 0), ("always_on", "", 2)]
)
async def test_the_standard_sampler_decides(
    build: Build, receiver: Collector, monkeypatch: pytest.MonkeyPatch, *, sampler: str, argument: str, sampled: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    async with build() as house:
        flag = "0" if sampled else "1"
        await asked(house, await house.key(), chat(), traceparent=TRACEPARENT[:-1] + flag)
        (received,) = house.sidecar.received
        assert received.headers["traceparent"].endswith("-01" if sampled else "-00")
    # The end of the server sends what is left, if that is slow in its own time.
    await arrived(receiver, *(SERVER, CALL)[:sampled])
    assert len(receiver.spans()) == sampled


async def test_the_service_is_named_by_the_standard_variables(
    build: Build, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gate")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=abc")
    async with build() as house:
        await asked(house, await house.key(), chat())
        await arrived(receiver, SERVER, CALL)
    assert {span.service for span in receiver.spans()} == {"gate"}
    assert {(headers["x-token"], headers["path"]) for headers in receiver.headers} == {("abc", "/v1/traces")}


async def test_a_collector_that_is_away_changes_no_answer_and_each_loss_is_told_of(
    build: Build, receiver: Collector
) -> None:
    receiver.status = 400
    async with build() as house:
        key = await house.key()
        for count in range(1, 4):
            assert (await asked(house, key, chat())).status == 200
            await house.line(count=count)
        await house.line("traces_lost")
    told = house.lines("traces_lost")
    # Once within the minute, and at the end, if something was left to tell.
    assert len(told) <= 2
    # Of each the proxy's span and its call's.
    assert sum(line["count"] for line in told) == 6


async def test_another_protocol_refuses_to_start(
    build: Build, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigInvalidError, match="only http/protobuf"):
        async with build():
            pass


@pytest.mark.parametrize("how", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
async def test_it_is_switched_off_by_the_standard_variables(
    build: Build, receiver: Collector, monkeypatch: pytest.MonkeyPatch, how: dict[str, str]
) -> None:
    for name, value in how.items():
        monkeypatch.setenv(name, value)
    async with build() as house:
        await asked(house, await house.key(), chat())
        (received,) = house.sidecar.received
        assert received.headers["traceparent"] == f"00-{TRACE_ID}-{(await house.line())['span_id']}-01"
    assert receiver.spans() == []
