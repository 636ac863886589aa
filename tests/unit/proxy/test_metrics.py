"""The metrics page: what is closed stays closed, and who is active."""

import asyncio
import re
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from proxy.metrics import ActiveClients, Metrics, quota_bands
from tests.fakes.proxy import FakeClock

CLOSED = {"endpoint", "model", "tier", "code", "stream", "phase", "type", "origin", "policy", "decision", "window"}
CLOSED |= {"reason", "quota_band", "upstream", "revision", "version", "python", "le", "result", "state"}


def test_clients_are_active_within_their_windows() -> None:
    clock = FakeClock()
    active = ActiveClients(clock)
    active.saw("a")
    clock.seconds = 200.0
    active.saw("b")
    active.saw("b")
    assert active.counts() == {"5m": 2, "1h": 2, "24h": 2}
    clock.seconds = 400.0
    assert active.counts() == {"5m": 1, "1h": 2, "24h": 2}
    clock.seconds = 86_400.0 + 100.0
    assert active.counts() == {"5m": 0, "1h": 0, "24h": 1}
    active.forget_old()
    assert list(active._seen) == ["b"]


@pytest.mark.parametrize(
    ("share", "band"),
    [(0, "0_50"), (0.5, "0_50"), (0.51, "50_80"), (0.8, "50_80"), (0.95, "80_95"), (1.0, "95_100"), (1.01, "over")],
)
def test_a_share_belongs_to_one_band(share: float, band: str) -> None:
    counts = quota_bands([(share, 3)])
    assert {name: count for name, count in counts.items() if count} == {band: 3}
    assert set(counts) == {"0_50", "50_80", "80_95", "95_100", "over"}


async def test_a6_the_page_has_our_names_and_closed_labels_only() -> None:
    metrics = Metrics(FakeClock(), CollectorRegistry(), "1.0")
    metrics.requests.add(1, "/v1/models", "m", "free", "200")
    page = (await metrics.page()).decode()
    for family in text_string_to_metric_families(page):
        assert family.documentation
        assert re.fullmatch(r"(tollhouse_proxy|process)_[a-z0-9_]+", family.name)
        for sample in family.samples:
            assert set(sample.labels) <= CLOSED
    assert 'tollhouse_proxy_build_info{python="' in page


async def test_a6_the_page_of_a_busy_house_has_less_than_two_thousand_lines() -> None:
    metrics = Metrics(FakeClock(), CollectorRegistry(), "1.0")
    models, tiers = [f"org/model-{n}" for n in range(4)], ["free", "pro", "unlimited", "none"]
    for endpoint in ("/v1/chat/completions", "/v1/completions"):
        for stream in ("true", "false"):
            metrics.duration.observe(1, endpoint, stream)
        for model in models:
            for tier in tiers:
                for code in ("200", "400", "404", "429", "499", "503"):
                    metrics.requests.add(1, endpoint, model, tier, code)
    for model in models:
        metrics.first_token.observe(1, model)
    for key in range(50):
        metrics.active.saw(f"key{key}")
    page = await metrics.page()
    assert len(page.splitlines()) < 2000


class Patient(Collector):
    """Has its samples only once the event loop has gone on. Mutable: `turns`, set by the loop when it has."""

    def __init__(self) -> None:
        self.turns = threading.Event()

    def collect(self) -> Iterator[Metric]:
        assert self.turns.wait(10), "the event loop stood still while the page was made"
        yield GaugeMetricFamily("tollhouse_proxy_patient", "Waits for the loop.", 1)


async def test_the_event_loop_goes_on_while_the_page_is_made() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(FakeClock(), registry, "1.0")
    patient = Patient()
    registry.register(patient)

    async def turn() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        patient.turns.set()

    page, _ = await asyncio.gather(metrics.page(), turn())
    assert b"tollhouse_proxy_patient 1.0" in page
