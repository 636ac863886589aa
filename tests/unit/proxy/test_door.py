"""Who is refused at the door is counted each time, and told of now and then. On sockets: tests/wire/proxy."""

import io
import json

from prometheus_client import CollectorRegistry

from proxy.connections import Full
from proxy.door import TELL_EVERY_S, Refused
from proxy.metrics import Metrics
from sidecar.jsonlog import JsonLog
from tests.fakes.proxy import FakeClock


def test_a_flood_is_counted_whole_and_told_once_a_minute() -> None:
    clock, log = FakeClock(), io.StringIO()
    metrics = Metrics(clock, CollectorRegistry(), "1")
    refused = Refused(metrics, JsonLog(log), clock)
    for _ in range(1000):
        refused.note(Full.CONNECTIONS)
    refused.note(Full.ADDRESS)
    clock.seconds = TELL_EVERY_S
    refused.note(Full.CONNECTIONS)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["reason"], line["count"]) for line in lines] == [
        ("connections", 1),
        ("address", 1),
        ("connections", 1000),
    ]
    assert metrics.refused_connections.labels("connections")._value.get() == 1001
