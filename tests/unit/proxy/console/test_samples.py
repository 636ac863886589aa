"""The samples that the overview draws: rates, quantiles, and how many of them there are."""

import math

import pytest
from prometheus_client import CollectorRegistry, Metric

from proxy.asked import UpstreamLostError
from proxy.console.readings import Engine, quantile
from proxy.console.samples import EVERY_S, MINUTE, MOST, Samples
from proxy.metrics import Metrics
from tests.fakes.proxy import NOON, FakeClock

CHAT = "/v1/chat/completions"
PAGE = b"""\
# TYPE tollhouse_sidecar_requests_running gauge
tollhouse_sidecar_requests_running 3.0
# TYPE tollhouse_sidecar_requests_waiting gauge
tollhouse_sidecar_requests_waiting 2.0
# TYPE tollhouse_sidecar_kv_cache_used_ratio gauge
tollhouse_sidecar_kv_cache_used_ratio 0.25
"""


class FakeSidecar:
    def __init__(self, name: str, page: bytes | None, *, ready: bool = True) -> None:
        self.name, self.page, self.ready = name, page, ready

    async def metrics(self) -> bytes:
        if self.page is None:
            raise UpstreamLostError
        return self.page


class Sampled:
    """Samples of real metrics, and a clock to move."""

    def __init__(self, *sidecars: FakeSidecar) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics(self.clock, CollectorRegistry(), "1.0")
        self.sidecars = list(sidecars)
        self.samples = Samples(self, lambda: self.sidecars, self.clock)

    async def families(self) -> list[Metric]:
        return await self.metrics.families()

    async def take(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.seconds += EVERY_S
            await self.samples.take()

    def serve(self, requests: int, seconds: float = 0.2) -> None:
        for _ in range(requests):
            self.metrics.requests.add(1, CHAT, "m", "t", "200")
            self.metrics.duration.observe(seconds, CHAT, "true")


async def test_rates_are_since_the_sample_before() -> None:
    sampled = Sampled()
    sampled.serve(7)
    await sampled.take()
    assert sampled.samples.since(0.0).samples == []
    sampled.serve(10)
    sampled.metrics.tokens.add(50, "m", "t", "input")
    sampled.metrics.tokens.add(100, "m", "t", "output")
    sampled.metrics.errors.labels("requests", "policy").inc(2)
    sampled.metrics.in_progress.inc(4)
    await sampled.take(2)
    first, second = sampled.samples.since(0.0).samples
    assert (first.requests_per_s, first.tokens_in_per_s, first.tokens_out_per_s) == (2.0, 10.0, 20.0)
    assert (first.errors, first.in_progress) == ({"requests": 2}, 4)
    assert (second.requests_per_s, second.errors, second.in_progress) == (0.0, {}, 4)
    assert second.at == NOON.timestamp() + 3 * EVERY_S


async def test_quantiles_are_of_the_last_minute() -> None:
    sampled = Sampled()
    sampled.serve(1000, 100.0)
    await sampled.take()
    sampled.serve(100, 0.2)
    for _ in range(1000):
        # What no model has to do with.
        sampled.metrics.duration.observe(0.001, "/v1/models", "false")
    await sampled.take()
    (sample,) = sampled.samples.since(0.0).samples
    assert sample.first_token is None
    assert sample.latency is not None
    assert 0.1 < sample.latency.p50 < sample.latency.p95 < sample.latency.p99 <= 0.25
    await sampled.take(MINUTE)
    assert sampled.samples.since(0.0).samples[-1].latency is None


async def test_sidecars_are_asked_and_one_that_does_not_answer_is_none() -> None:
    sampled = Sampled(
        FakeSidecar("a", PAGE),
        FakeSidecar("lost", None),
        FakeSidecar("odd", b"tollhouse_sidecar_requests_running {{{ \xff"),
        FakeSidecar("loading", PAGE, ready=False),
    )
    await sampled.take(2)
    (sample,) = sampled.samples.since(0.0).samples
    assert sample.engines == {"a": Engine(3, 2, 0.25), "lost": None, "odd": None, "loading": None}


async def test_there_are_so_many_samples_and_a_page_asks_for_the_new_ones() -> None:
    sampled = Sampled()
    # Only the ring is of interest here.
    sampled.metrics = Metrics(sampled.clock, CollectorRegistry(), "1.0")
    await sampled.take(MOST + 10)
    kept = sampled.samples.since(0.0)
    assert (len(kept.samples), kept.every_s) == (MOST, EVERY_S)
    assert sampled.samples.since(kept.samples[-3].at).samples == kept.samples[-2:]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 1.0), (0.25, 0.5), (0.75, 1.5), (1.0, 2.0)])
def test_a_quantile_is_interpolated(share: float, expected: float) -> None:
    assert quantile([(1.0, 10.0), (2.0, 20.0), (math.inf, 20.0)], share) == pytest.approx(expected)


def test_a_quantile_beyond_the_last_bucket_is_its_end() -> None:
    assert quantile([(1.0, 0.0), (math.inf, 5.0)], 0.5) == 1.0
    assert quantile([(1.0, 0.0), (math.inf, 0.0)], 0.5) is None
    assert quantile([], 0.5) is None
