"""How spans leave: what is said of those that were lost, and how long an end may wait for the last of them."""

import io
import json
import socket
import threading
import time

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.trace.export import SpanExportResult

from sidecar import otlp
from sidecar.jsonlog import JsonLog
from sidecar.otlp import OtlpTracer, Watched
from sidecar.spans import Kind, Span
from tests.fakes.waiting import LIMIT_S

SPAN = Span("GET /v1/models", Kind.SERVER, "a" * 32, "b" * 16, "", 1, 2, {}, events=(("first_token", 1),))


class Refused:
    def export(self, _: object) -> SpanExportResult:
        return SpanExportResult.FAILURE


class Held:
    """Takes spans when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.got = 0

    def export(self, spans: list[object]) -> SpanExportResult:
        self.may.wait(LIMIT_S)
        self.got += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def counts(out: io.StringIO) -> list[int]:
    return [json.loads(line)["count"] for line in out.getvalue().splitlines()]


def test_losses_are_told_of_once_a_minute_and_at_the_end() -> None:
    now_s, out = 0.0, io.StringIO()
    watched = Watched(Refused(), 100, JsonLog(out), lambda: now_s)
    for at_s in (0.0, 1.0, 59.0, 61.0, 62.0):
        now_s = at_s
        assert watched.has_room()
        assert watched.has_room()
        watched.export([None, None])
    assert counts(out) == [2, 6]
    watched.end()
    watched.end()
    assert counts(out) == [2, 6, 2]


def test_what_finds_the_queue_full_is_lost_and_counted_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, out, held = 0.0, io.StringIO(), Held()
    monkeypatch.setattr(otlp, "CLOSE_S", LIMIT_S)
    monkeypatch.setattr(otlp, "OTLPSpanExporter", lambda: held)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    tracer = OtlpTracer("x", "1", JsonLog(out), lambda: now_s)
    for _ in range(2000):
        tracer.send(SPAN)
    held.may.set()
    tracer.close()
    # A batch may have left the queue before it was full.
    assert 600 <= held.got <= 600 + 512
    assert sum(counts(out)) == 2000 - held.got


class Unhurried(io.StringIO):
    """Whoever writes lets others go on meanwhile."""

    def write(self, text: str) -> int:
        time.sleep(0.001)
        return super().write(text)


def test_each_loss_is_told_once_though_two_threads_see_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sending thread waits to try again, and is woken by the end.
    monkeypatch.setattr(otlp, "CLOSE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    for _ in range(5):
        out = Unhurried()
        tracer = OtlpTracer("x", "1", JsonLog(out))
        for _ in range(200):
            tracer.send(SPAN)
        tracer.close()
        for thread in threading.enumerate():
            if "BatchSpan" in thread.name:
                thread.join(LIMIT_S)
        assert sum(counts(out)) == 200


def test_a_collector_that_hangs_keeps_no_request_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_S", 0.2)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        out = io.StringIO()
        tracer = OtlpTracer("x", "1", JsonLog(out))
        begun_s = time.monotonic()
        # More than the queue holds.
        for _ in range(2000):
            tracer.send(SPAN)
        tracer.close()
    # Its own limit for one batch is ten seconds.
    assert time.monotonic() - begun_s < 9
    assert sum(counts(out)) == 2000
