"""The page: names and labels as documented, steps by phase, gauges as they stand."""

import re

import msgspec
import pytest

from sidecar.metrics import Gauges, Metrics
from sidecar.wire.frames import Step
from tests.fakes.engine import READY

STEP = Step(1, [], 3, 0, 0, 0, 0, 0, 0.03, 0.04)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tollhouse_sidecar_{name}", labels)


@pytest.mark.parametrize(("prefill", "decode", "phase"), [(5, 0, "prefill"), (0, 5, "decode"), (5, 5, "mixed")])
def test_a_step_is_counted_under_its_phase(prefill: int, decode: int, phase: str) -> None:
    metrics = Metrics("m")
    metrics.step(msgspec.structs.replace(STEP, prefill_tokens=prefill, decode_tokens=decode))
    assert value(metrics, "step_duration_seconds_sum", phase=phase) == pytest.approx(0.04)
    assert value(metrics, "step_overhead_ratio_sum") == pytest.approx(0.25)
    assert value(metrics, "batch_size_sum") == 3


def test_a_report_of_what_was_ended_is_no_step() -> None:
    metrics = Metrics("m")
    metrics.step(msgspec.structs.replace(STEP, forward_s=0.0, waits_s=[0.5]))
    assert value(metrics, "step_duration_seconds_count", phase="decode") == 0
    assert value(metrics, "step_overhead_ratio_count") == value(metrics, "batch_size_count") == 0
    assert value(metrics, "queue_wait_seconds_count") == 1


def test_tokens_that_come_at_once_share_the_time_since_the_last() -> None:
    metrics = Metrics("m")
    metrics.next_tokens(4, 0.08)
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.02") == 4
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.015") == 0
    assert value(metrics, "inter_token_latency_seconds_sum") == pytest.approx(0.08)


def test_the_gauges_follow_the_engine() -> None:
    metrics = Metrics("m")
    metrics.observe(Gauges(2, 5, 0.25, 1, {"m": READY}))
    metrics.observe(Gauges(1, 0, 0.5, 3, {"m": READY}))
    assert (value(metrics, "requests_running"), value(metrics, "requests_waiting")) == (1, 0)
    assert value(metrics, "kv_cache_used_ratio") == 0.5
    assert value(metrics, "engine_restarts_total") == 3
    assert value(metrics, "model_load_seconds", model="m", phase="weights") == 0.5
    assert value(metrics, "memory_bytes", model="m", kind="weights") == 1000
    assert value(metrics, "memory_bytes", model="m", kind="kv") == 2000


def test_prompt_tokens_are_counted_by_where_they_came_from() -> None:
    metrics = Metrics("m")
    for cached in (0, 64):
        metrics.step(
            msgspec.structs.replace(STEP, prefill_tokens=9, queried_tokens=70, cached_tokens=cached, prefix_tokens=128)
        )
    assert value(metrics, "prompt_tokens_total", source="computed") == 18
    assert value(metrics, "prompt_tokens_total", source="cached") == 64
    assert value(metrics, "prefix_cache_query_tokens_total") == 140
    assert value(metrics, "prefix_cache_hit_tokens_total") == 64
    assert value(metrics, "prefix_cache_tokens") == 128


def test_waiting_and_reading_the_prompt_are_timed_for_each_sequence() -> None:
    metrics = Metrics("m")
    metrics.step(msgspec.structs.replace(STEP, waits_s=[0.5, 1.5]))
    metrics.step(msgspec.structs.replace(STEP, waits_s=[3.0], prefills_s=[0.25, 0.5]))
    assert (value(metrics, "queue_wait_seconds_count"), value(metrics, "queue_wait_seconds_sum")) == (3, 5.0)
    assert (value(metrics, "prefill_seconds_count"), value(metrics, "prefill_seconds_sum")) == (2, 0.75)


def test_the_load_is_published_by_vllms_names_if_that_is_wanted() -> None:
    plain, known = Metrics("m"), Metrics("m", ["vllm"])
    for metrics in (plain, known):
        metrics.observe(Gauges(2, 5, 0.25, 0, {}))
    assert b"vllm:" not in plain.render()
    for name, wanted in (("num_requests_running", 2), ("num_requests_waiting", 5), ("kv_cache_usage_perc", 0.25)):
        assert known.registry.get_sample_value(f"vllm:{name}", {"model_name": "m"}) == wanted


def test_preemptions_are_counted_on_when_an_engine_begins_anew() -> None:
    metrics = Metrics("m")
    for total in (2, 2, 5, 1, 3):
        metrics.step(msgspec.structs.replace(STEP, preemptions=total))
    assert value(metrics, "preemptions_total") == 5 + 3


def test_an_engine_that_comes_back_in_another_tier_leaves_no_trace_of_the_first() -> None:
    metrics = Metrics("m")
    metrics.observe(Gauges(0, 0, 0.0, 0, {"m": READY}))
    other = msgspec.structs.replace(READY, tier="sequential", precision="int8")
    metrics.observe(Gauges(0, 0, 0.0, 1, {"m": other}))
    lines = [
        line for line in metrics.render().decode().splitlines() if line.startswith("tollhouse_sidecar_model_info{")
    ]
    assert lines == [
        'tollhouse_sidecar_model_info{device="cpu",dtype="float32",model="m",quantization="int8",tier="sequential"} 1.0'
    ]


def test_a_second_model_is_told_beside_the_first() -> None:
    metrics = Metrics("m")
    encoder = msgspec.structs.replace(READY, tier="encoder", weights_bytes=7)
    metrics.observe(Gauges(0, 0, 0.0, 0, {"m": READY, "e": encoder}))
    assert [value(metrics, "memory_bytes", model=model, kind="weights") for model in ("m", "e")] == [1000, 7]
    assert value(metrics, "model_load_seconds", model="e", phase="weights") == 0.5
    told = {"dtype": "float32", "quantization": "none", "device": "cpu"}
    assert value(metrics, "model_info", model="m", tier="packed", **told) == 1
    assert value(metrics, "model_info", model="e", tier="encoder", **told) == 1


def test_every_name_is_ours_or_the_process_s_and_is_explained() -> None:
    metrics = Metrics("m")
    metrics.observe(Gauges(0, 0, 0.0, 0, {"m": READY}))
    page = metrics.render().decode()
    explained = set(re.findall(r"^# HELP (\S+) \S", page, re.MULTILINE))
    typed = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    assert explained == typed
    assert all(name.startswith(("tollhouse_sidecar_", "process_")) for name in typed)
