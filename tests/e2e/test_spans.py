"""One trace from the client through the proxy to the sidecar, as a collector gets it, with the real model."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, set_span_in_context

from sidecar import spans
from tests.fakes.collector import Collector, Seen, collector

MODEL = "smollm2-135m-instruct"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
SERVER, CALL = "POST /v1/chat/completions", f"chat {MODEL}"
WHOLE = [("tollhouse-proxy", SERVER), ("tollhouse-proxy", CALL), ("tollhouse-sidecar", SERVER)]
PHASES = ["queue", "prefill", "decode"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], receiver: Collector) -> Iterator[Any]:
    house = build_house({"open": {}, "one": {"requests_per_minute": 1}})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in receiver.environ.items():
            patch.setenv(name, value)
        house.start_sidecar()
        house.start_proxy()
    return house


@pytest.fixture(scope="module")
def key(house: Any) -> str:
    return str(house.key("open"))


def traced() -> tuple[str, str, dict[str, str]]:
    """A span of a client's own, by the stock SDK: its trace's id, its own, and the headers that tell of it."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("client").start_span("ask", kind=SpanKind.CLIENT)
    headers: dict[str, str] = {}
    inject(headers, set_span_in_context(span))
    span.end()
    return f"{span.get_span_context().trace_id:032x}", f"{span.get_span_context().span_id:016x}", headers


def arrived(receiver: Collector, trace_id: str, count: int) -> dict[tuple[str, str], Seen]:
    def of_trace(seen: list[Seen]) -> list[Seen]:
        return [span for span in seen if span.trace_id == trace_id]

    found = of_trace(receiver.wait(lambda seen: len(of_trace(seen)) >= count))
    assert len(found) == count
    return {(span.service, span.name): span for span in found}


@pytest.mark.parametrize("stream", [False, True])
def test_a_trace_goes_from_the_client_through_the_proxy_to_the_sidecar(
    house: Any, key: str, receiver: Collector, stream: bool
) -> None:
    trace_id, client_id, headers = traced()
    begun_ns = time.time_ns()
    answer = house.client(key).chat.completions.create(**CHAT, stream=stream, extra_headers=headers)
    answers = list(answer) if stream else [answer]
    (reason,) = {choice.finish_reason for part in answers for choice in part.choices} - {None}
    seen = arrived(receiver, trace_id, 6)
    served, called, ran = (seen[name] for name in WHOLE)
    assert (served.parent_id, called.parent_id, ran.parent_id) == (client_id, served.span_id, called.span_id)
    assert [span.kind for span in (served, called, ran)] == ["server", "client", "server"]
    assert begun_ns <= served.start_ns <= called.start_ns <= ran.start_ns
    assert ran.start_ns <= called.end_ns <= served.end_ns <= time.time_ns()
    assert called.attributes[spans.RESPONSE_ID] == answers[0].id
    assert (called.attributes[spans.MAX_TOKENS], called.attributes[spans.TEMPERATURE]) == (8, 0)
    usage = next(row for row in house.ledger().values() if row["request_id"] == served.attributes[spans.REQUEST_ID])
    assert called.attributes[spans.OPERATION] == "chat"
    assert called.attributes[spans.RESPONSE_MODEL] == ran.attributes[spans.MODEL] == MODEL
    assert called.attributes[spans.FINISH_REASONS] == [ran.attributes[spans.ENGINE_FINISH_REASON]] == [reason]
    prompt_tokens, completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    assert called.attributes[spans.INPUT_TOKENS] == ran.attributes[spans.ENGINE_PROMPT_TOKENS] == prompt_tokens
    assert called.attributes[spans.OUTPUT_TOKENS] == ran.attributes[spans.ENGINE_COMPLETION_TOKENS] == completion_tokens
    # Whoever adds up what a trace used counts it once.
    told = [span.name for span in seen.values() if any(name.startswith("gen_ai.") for name in span.attributes)]
    assert told == [CALL]
    phases = [seen["tollhouse-sidecar", name] for name in PHASES]
    assert {phase.parent_id for phase in phases} == {ran.span_id}
    assert [phase.end_ns for phase in phases[:2]] == [phase.start_ns for phase in phases[1:]]
    assert not [span for span in seen.values() if span.failed or spans.ERROR_TYPE in span.attributes]


def test_refusals_of_a_rule_and_of_the_sidecar_are_in_the_trace(house: Any, key: str, receiver: Collector) -> None:
    trace_id, client_id, headers = traced()
    with pytest.raises(openai.BadRequestError) as refused:
        house.client(key).chat.completions.create(**CHAT, extra_body={"no_such_field": 1}, extra_headers=headers)
    seen = arrived(receiver, trace_id, 3)
    served, called, ran = (seen[name] for name in WHOLE)
    assert (served.parent_id, called.parent_id, ran.parent_id) == (client_id, served.span_id, called.span_id)
    assert served.attributes[spans.ERROR_TYPE] == called.attributes[spans.ERROR_TYPE] == refused.value.code
    assert ran.attributes[spans.ERROR_TYPE] == "400"
    assert not any(span.failed for span in seen.values())

    client = house.client(house.key("one"))
    client.chat.completions.create(**CHAT)
    trace_id, client_id, headers = traced()
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**CHAT, extra_headers=headers)
    ((_, served),) = arrived(receiver, trace_id, 1).items()
    assert (served.parent_id, served.attributes[spans.RULE]) == (client_id, "requests_per_minute")


def test_an_unsampled_request_leaves_no_span(house: Any, key: str, receiver: Collector) -> None:
    trace_id, _, headers = traced()
    headers["traceparent"] = headers["traceparent"][:-1] + "0"
    house.client(key).chat.completions.create(**CHAT, extra_headers=headers)
    other_id, _, headers = traced()
    house.client(key).chat.completions.create(**CHAT, extra_headers=headers)
    arrived(receiver, other_id, 6)
    assert trace_id not in {span.trace_id for span in receiver.spans()}


def test_no_word_of_a_prompt_or_an_answer_was_sent(house: Any, key: str, receiver: Collector) -> None:
    trace_id, _, headers = traced()
    answer = house.client(key).chat.completions.create(**CHAT, extra_headers=headers)
    arrived(receiver, trace_id, 6)
    sent = b"".join(receiver.bodies)
    words = [word for word in str(answer.choices[0].message.content).split() if len(word) > 3]
    assert words
    for word in ("capital", "France", *words, key, "127.0.0.1", json.dumps(QUESTION)):
        assert word.encode() not in sent
