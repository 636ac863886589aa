"""Whether spans are sent, by the standard variables of OpenTelemetry. Without an endpoint nothing of it is imported."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Final

from sidecar.jsonlog import JsonLog
from sidecar.spans import Tracer
from sidecar.yamlfile import ConfigInvalidError, Problem

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"
SENDER: Final = "sidecar.otlp"
INSTALL: Final = "pip install 'tollhouse[otel]'"
# Of what a collector may take for one batch.
LEAST_S: Final = 0.001
MOST_S: Final = 3600.0
SAMPLER: Final = "OTEL_TRACES_SAMPLER"
SAMPLER_ARG: Final = "OTEL_TRACES_SAMPLER_ARG"
RATIOS: Final = ("traceidratio", "parentbased_traceidratio")
SAMPLERS: Final = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off", *RATIOS)


def collector(environ: Mapping[str, str]) -> str | None:
    """Where spans are to be sent; None if nowhere. Reads files: call it at start, or in a thread.

    Raises ConfigInvalidError if they cannot be sent, as the environment has it.
    """
    endpoint = _first(environ, ENDPOINTS)
    if endpoint is None or _off(environ):
        return None
    protocol = _first(environ, PROTOCOLS)
    if protocol is not None and environ[protocol] != PROTOCOL:
        raise _problem(protocol, f"only {PROTOCOL} is spoken here, port 4318 of most collectors")
    for name, (fits, form) in _forms(environ).items():
        if environ.get(name) and not fits(environ[name]):
            raise _problem(name, f"{environ[name]!r} is not {form}")
    try:
        import_module(SENDER)
    except ImportError as exc:
        raise _problem(endpoint, f"it is set, but what sends traces is not installed; run: {INSTALL}") from exc
    return environ[endpoint]


def open_tracer(environ: Mapping[str, str], service: str, log: JsonLog) -> Tracer | None:
    """None where nothing is to be sent. Raises as `collector` does."""
    if collector(environ) is None:
        return None
    from sidecar.otlp import OtlpTracer  # noqa: PLC0415 - the extra may not be there

    log.info("tracing", hint="Spans of sampled requests are sent to a collector. None holds a prompt or an answer.")
    try:
        return OtlpTracer(service, version("tollhouse"), log)
    except ValueError as exc:
        raise _problem("OTEL_*", str(exc)) from exc


@contextlib.asynccontextmanager
async def opened(environ: Mapping[str, str], service: str, log: JsonLog) -> AsyncIterator[Tracer | None]:
    """A tracer for as long as the server lives. Raises as `open_tracer` does."""
    tracer = await asyncio.to_thread(open_tracer, environ, service, log)
    try:
        yield tracer
    finally:
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


def _forms(environ: Mapping[str, str]) -> dict[str, tuple[Callable[[str], bool], str]]:
    """What variables must be. The SDK would take its default for what is none of it, and sends every request then."""
    whole = (_is_number(int, least=1), "a whole number from 1")
    seconds = (_is_number(float, least=LEAST_S, most=MOST_S), "a number of seconds, a millisecond to an hour")
    compression = (lambda value: value.strip().lower() in {"none", "gzip", "deflate"}, "none, gzip or deflate")
    found: dict[str, tuple[Callable[[str], bool], str]] = {
        SAMPLER: (lambda value: value.lower() in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
        "OTEL_BSP_SCHEDULE_DELAY": whole,
        "OTEL_BSP_MAX_QUEUE_SIZE": whole,
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": whole,
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": seconds,
        "OTEL_EXPORTER_OTLP_TIMEOUT": seconds,
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": compression,
        "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
    }
    if environ.get(SAMPLER, "").lower() in RATIOS:
        found[SAMPLER_ARG] = (_is_number(float, least=0, most=1), "a share from 0 to 1, like 0.01")
    return found


def _is_number(kind: type[int] | type[float], *, least: float, most: float = math.inf) -> Callable[[str], bool]:
    def fits(value: str) -> bool:
        try:
            return least <= kind(value) <= most
        except ValueError:
            return False

    return fits


def _off(environ: Mapping[str, str]) -> bool:
    """An unset and an empty variable are the same (OpenTelemetry, "Environment Variable Specification")."""
    return environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The first of the variables that is set."""
    return next((name for name in names if environ.get(name)), None)


def _problem(name: str, message: str) -> ConfigInvalidError:
    return ConfigInvalidError([Problem("environment", 0, 0, f"{name}: {message}")])
