"""A collector of traces: OTLP over HTTP, as OpenTelemetry's own messages read it."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from typing_extensions import override

WAIT_S = 20.0
KINDS = {1: "internal", 2: "server", 3: "client"}
ERROR = 2


@dataclass(frozen=True)
class Seen:
    """A span that arrived; `parent_id` is empty where it has none."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[str]
    failed: bool


@dataclass
class Collector:
    """What arrived; `status` is what it answers."""

    port: int = 0
    status: int = 200
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def environ(self) -> dict[str, str]:
        """That of a process which sends its spans here, and soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_BSP_SCHEDULE_DELAY": "20"}

    def spans(self) -> list[Seen]:
        return [span for body in list(self.bodies) for span in _read(body)]

    def wait(self, done: Callable[[list[Seen]], bool]) -> list[Seen]:
        """All spans, once there are enough."""
        with self.changed:
            assert self.changed.wait_for(lambda: done(self.spans()), WAIT_S), self.spans()
        return self.spans()


@contextmanager
def collector() -> Iterator[Collector]:
    own = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if own.status == 200:
                own.headers.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
                own.bodies.append(body)
            self.send_response(own.status)
            self.send_header("content-length", "0")
            self.end_headers()
            with own.changed:
                own.changed.notify_all()

        @override
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        own.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield own
        finally:
            server.shutdown()
            thread.join()


def _read(body: bytes) -> Iterator[Seen]:
    message = ExportTraceServiceRequest()
    message.ParseFromString(body)
    for group in message.resource_spans:
        resource = {pair.key: _value(pair.value) for pair in group.resource.attributes}
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield Seen(
                service=resource["service.name"],
                name=span.name,
                kind=KINDS[span.kind],
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                start_ns=span.start_time_unix_nano,
                end_ns=span.end_time_unix_nano,
                attributes={pair.key: _value(pair.value) for pair in span.attributes},
                events=[event.name for event in span.events],
                failed=span.status.code == ERROR,
            )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(each) for each in found.values] if kind == "array_value" else found
