"""When spans are sent, and what becomes of them where that fails. What they hold is tested where they are made."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar import spans, telemetry
from sidecar.jsonlog import JsonLog
from sidecar.yamlfile import ConfigInvalidError

ROOT = Path(__file__).parents[3]
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


def log() -> JsonLog:
    return JsonLog(io.StringIO())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "x"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "True"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_sent_unless_it_is_asked_for(environ: dict[str, str]) -> None:
    assert telemetry.open_tracer(environ, "x", log()) is None


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sidecar.otlp", None)
    with pytest.raises(ConfigInvalidError) as caught:
        telemetry.open_tracer(ENDPOINT, "x", log())
    (problem,) = caught.value.problems
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: it is set" in problem.message
    assert problem.message.endswith("run: pip install 'tollhouse[otel]'")


def test_the_proxy_and_the_front_need_nothing_of_opentelemetry() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import proxy.__main__, proxy.cli.root, proxy.app, sidecar.telemetry\n"
        "print(sorted(name for name in sys.modules if name.startswith(('opentelemetry.', 'google.protobuf'))))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_each_attribute_is_named_as_documented() -> None:
    page = (ROOT / "docs/tracing.md").read_text()
    documented = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 4}
    named = {value for name, value in vars(spans).items() if name.isupper() and isinstance(value, str) and "." in value}
    assert named == {name for name in documented if "." in name}


@pytest.mark.parametrize(
    ("name", "value", "more"),
    [
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidration", {}),
        ("OTEL_TRACES_SAMPLER_ARG", "1%", {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}),
        ("OTEL_TRACES_SAMPLER_ARG", "10", {"OTEL_TRACES_SAMPLER": "TraceIdRatio"}),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", {"OTEL_TRACES_SAMPLER": "traceidratio"}),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", {}),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many", {}),
        ("OTEL_BSP_SCHEDULE_DELAY", "5s", {}),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", {}),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "inf", {}),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zip", {}),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", {}),
    ],
)
def test_a_value_that_a_variable_cannot_have_is_refused_by_its_name(
    name: str, value: str, more: dict[str, str]
) -> None:
    with pytest.raises(ConfigInvalidError, match=f"environment: {name}: "):
        telemetry.collector(ENDPOINT | more | {name: value})


def test_sizes_that_do_not_fit_together_are_a_wrong_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", ENDPOINT["OTEL_EXPORTER_OTLP_ENDPOINT"])
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    with pytest.raises(ConfigInvalidError, match=r"OTEL_\*: "):
        telemetry.open_tracer(os.environ, "x", log())


def test_a_share_that_no_sampler_looks_at_may_be_anything() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
    assert telemetry.collector(ENDPOINT | {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": "x"})
