"""Sends spans to a collector, as OTLP over HTTP. The only module that knows OpenTelemetry; it needs the extra `otel`.

The SDK's own batch processor has the thread and the queue. Where that is full a span is dropped here, before the SDK
would drop another without telling how many. Endpoint, headers, timeouts, batches and sampler are the standard `OTEL_*`
variables.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from sidecar.jsonlog import JsonLog
from sidecar.spans import Kind, Span

CLOSE_S: Final = 3.0
# Python's lock is held while a batch is written, 45 µs a span: no stream should wait for one of OpenTelemetry's 512.
BATCH: Final = 64
# OpenTelemetry's own, where its variable says nothing.
QUEUE: Final = 2048
_BATCH_SIZE: Final = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_QUEUE_SIZE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
TOLD_EVERY_S: Final = 60.0
_KINDS: Final = {Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT, Kind.INTERNAL: SpanKind.INTERNAL}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)
_FAILED: Final = Status(StatusCode.ERROR)
_UNSET: Final = Status(StatusCode.UNSET)


class Watched:
    """The exporter, and what is said of spans that it could not send, or that found the queue before it full: once a
    minute, and at the end.

    Mutable: `_offered`, `_full`, by whoever has spans: how many there were, and how many of them found no room.
    `_taken`, `_sent`, by the sending thread: how many left the queue, and how many of them arrived. `_told`, the losses
    that were told of, and `_told_s`, when, by either at the end: `_telling` lets one tell at a time.
    """

    def __init__(self, exporter: OTLPSpanExporter, most: int, log: JsonLog, clock: Callable[[], float]) -> None:
        self._exporter = exporter
        self._most = most
        self._log = log
        self._clock = clock
        self._offered = self._full = self._taken = self._sent = self._told = 0
        self._told_s = float("-inf")
        self._telling = threading.Lock()

    def has_room(self) -> bool:
        """Whether one more span may be queued; it is lost if not."""
        self._offered += 1
        if self._offered - self._full - self._taken <= self._most:
            return True
        self._full += 1
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._taken += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._sent += len(spans)
        if self._clock() - self._told_s >= TOLD_EVERY_S:
            self._tell(self._full + self._taken - self._sent)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def end(self) -> None:
        """Nothing is sent any more: what was not sent is lost."""
        self._tell(self._offered - self._sent)

    def _tell(self, lost: int) -> None:
        with self._telling:
            if lost <= self._told:
                return
            self._log.warning(
                "traces_lost",
                count=lost - self._told,
                hint="The collector does not take them, or not so many: see OTEL_EXPORTER_OTLP_ENDPOINT and "
                "OTEL_TRACES_SAMPLER. Requests are served as before.",
            )
            self._told, self._told_s = lost, self._clock()


class OtlpTracer:
    """A `spans.Tracer`."""

    def __init__(self, service: str, release: str, log: JsonLog, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the environment. Raises ValueError for a size or a time that can be none."""
        # What it has to say of each failure of its own is said once a minute here.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        named = Resource({"service.namespace": "tollhouse", "service.name": service, "service.version": release})
        self._resource = named.merge(OTELResourceDetector().detect())
        self._sampler = TracerProvider(resource=self._resource, shutdown_on_exit=False).sampler
        self._scope = InstrumentationScope("tollhouse", release)
        most = int(os.environ.get(_QUEUE_SIZE) or QUEUE)
        self._exporter = Watched(OTLPSpanExporter(), most, log, clock)
        own = None if any(os.environ.get(name) for name in (_BATCH_SIZE, _QUEUE_SIZE)) else BATCH
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=most, max_export_batch_size=own)

    def samples(self, trace_id: str, parent_id: str, *, parent_sampled: bool) -> bool:
        context = None
        if parent_id:
            flags = _SAMPLED if parent_sampled else _NOT_SAMPLED
            parent = SpanContext(int(trace_id, 16), int(parent_id, 16), is_remote=True, trace_flags=flags)
            context = set_span_in_context(NonRecordingSpan(parent))
        result = self._sampler.should_sample(context, int(trace_id, 16), "", SpanKind.SERVER)
        return bool(result.decision.is_sampled())

    def send(self, span: Span) -> None:
        if not self._exporter.has_room():
            return
        trace_id = int(span.trace_id, 16)
        state = TraceState.from_header([span.tracestate]) if span.tracestate else None
        context = SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=_SAMPLED, trace_state=state)
        parent = None
        if span.parent_id:
            parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=span.remote, trace_flags=_SAMPLED)
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=span.attributes,
                events=tuple(Event(name, {}, timestamp=at_ns) for name, at_ns in span.events),
                kind=_KINDS[span.kind],
                status=_FAILED if span.failed else _UNSET,
                start_time=span.start_ns,
                end_time=max(span.start_ns, span.end_ns),
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> None:
        # A collector that hangs must not keep the process: what is not gone by then is lost.
        closing = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            self._exporter.shutdown()
        self._exporter.end()
