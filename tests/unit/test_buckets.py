"""Histograms have the buckets that were promised: a dashboard of before goes on with the release after."""

import pytest

from proxy.tallies import Spread
from tests.fakes.registries import registries

LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80)
BETWEEN_TOKENS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
COMMIT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMISED = {
    "tollhouse_proxy_request_duration_seconds": LATENCY,
    "tollhouse_proxy_time_to_first_token_seconds": FIRST_TOKEN,
    "tollhouse_proxy_overhead_seconds": OVERHEAD,
    "tollhouse_proxy_queue_wait_seconds": LATENCY,
    "tollhouse_proxy_ledger_commit_seconds": COMMIT,
    "tollhouse_proxy_ledger_batch_size": SEQUENCES,
    "tollhouse_proxy_event_loop_lag_seconds": OVERHEAD,
    "tollhouse_sidecar_queue_wait_seconds": LATENCY,
    "tollhouse_sidecar_prefill_seconds": LATENCY,
    "tollhouse_sidecar_decode_seconds": LATENCY,
    "tollhouse_sidecar_request_duration_seconds": LATENCY,
    "tollhouse_sidecar_time_to_first_token_seconds": FIRST_TOKEN,
    "tollhouse_sidecar_inter_token_latency_seconds": BETWEEN_TOKENS,
    "tollhouse_sidecar_request_prompt_tokens": TOKENS,
    "tollhouse_sidecar_request_output_tokens": TOKENS,
    "tollhouse_sidecar_batch_size": SEQUENCES,
    "tollhouse_sidecar_step_duration_seconds": BETWEEN_TOKENS,
    "tollhouse_sidecar_grammar_compile_seconds": LATENCY,
    "tollhouse_sidecar_step_overhead_ratio": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1),
}


def found() -> dict[str, tuple[float, ...]]:
    """The upper ends of each histogram's buckets, but for the last, which is endless."""
    buckets: dict[str, tuple[float, ...]] = {}
    for registry in registries():
        for collector in registry._collector_to_names:
            ours = isinstance(collector, Spread)
            given = collector._bounds if ours else getattr(collector, "_kwargs", {}).get("buckets")
            if given:
                buckets[str(collector._name)] = tuple(given)  # type: ignore[attr-defined]  # what has buckets has a name
    return buckets


@pytest.mark.parametrize("name", sorted(PROMISED | found()))
def test_a_histogram_has_the_buckets_that_were_promised(name: str) -> None:
    assert tuple(end for end in found()[name] if end != float("inf")) == PROMISED[name]
