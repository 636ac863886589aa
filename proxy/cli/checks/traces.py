"""Whether spans are sent, and whether there is somebody who takes them."""

import os
import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from proxy.cli.checks.check import Check, failed, ok, warning
from sidecar import telemetry
from sidecar.yamlfile import ConfigInvalidError

TRACES: Final = "traces"
_REACH_S: Final = 2.0
_PORTS: Final = {"http": 80, "https": 443}


def check_traces(environ: Mapping[str, str] = os.environ) -> Check:
    """Spans go nowhere, or to a collector that takes connections."""
    try:
        address = telemetry.collector(environ)
    except ConfigInvalidError as exc:
        return failed(TRACES, exc.problems[0].message, "Neither process starts like this: see docs/tracing.md.")
    if address is None:
        return ok(TRACES, f"none are sent: {telemetry.ENDPOINTS[-1]} is not set, or they are turned off")
    place = _place(address)
    if place is None:
        return failed(TRACES, f"{address!r} is no address of a collector", "It is like this: http://127.0.0.1:4318")
    host, port = place
    try:
        socket.create_connection(place, _REACH_S).close()
    except OSError as exc:
        return warning(
            TRACES,
            f"{host}:{port}: {exc.strerror or exc}",
            "Requests are served all the same, and their spans are lost. Start the collector, or see its address.",
        )
    return ok(TRACES, f"{host}:{port} takes connections")


def _place(address: str) -> tuple[str, int] | None:
    """Host and port, as what sends spans understands an address; None if it cannot."""
    try:
        parts = urlsplit(address)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.hostname, port) if parts.hostname else None
