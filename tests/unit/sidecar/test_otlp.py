"""How spans leave: what is said of those that were lost, and how long an end may wait for the last of them."""

import io
import json
import socket
import time

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.trace.export import SpanExportResult

from sidecar import otlp
from sidecar.jsonlog import JsonLog
from sidecar.otlp import OtlpTracer, Watched
from sidecar.spans import Kind, Span

SPAN = Span("GET /v1/models", Kind.SERVER, "a" * 32, "b" * 16, "", 1, 2, {}, events=(("first_token", 1),))


class Refused:
    def export(self, _: object) -> SpanExportResult:
        return SpanExportResult.FAILURE


def test_losses_are_told_of_once_a_minute() -> None:
    now_s, out = 0.0, io.StringIO()
    watched = Watched(Refused(), JsonLog(out), lambda: now_s)
    for at_s in (0.0, 1.0, 59.0, 61.0, 62.0):
        now_s = at_s
        watched.export([None, None])
    assert [json.loads(line)["count"] for line in out.getvalue().splitlines()] == [2, 6]


def test_a_collector_that_hangs_keeps_no_request_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_S", 0.2)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracer = OtlpTracer("x", "1", JsonLog(io.StringIO()))
        begun_s = time.monotonic()
        # More than the queue holds.
        for _ in range(2000):
            tracer.send(SPAN)
        tracer.close()
    # Its own limit for one batch is ten seconds.
    assert time.monotonic() - begun_s < 9
