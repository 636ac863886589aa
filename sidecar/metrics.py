"""The sidecar's metrics: their names, labels and buckets, and the page. No opinion on when something is counted.

Every label comes from a closed set: the served models, enums, the engine's own words about itself. Counting is cheap
and happens on the event loop; the page is rendered in a thread, for it can take milliseconds.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from sidecar.wire.frames import Ready, Step

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
FIRST_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80)
BETWEEN_TOKENS_S: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
SEQUENCES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)

FINISH_REASONS: Final = ("stop", "length", "tool_calls", "function_call", "aborted")
ABORT_REASONS: Final = ("client_gone", "deadline", "cancelled", "engine_lost", "engine_error")
EMBEDDING_OUTCOMES: Final = ("complete", "failed", "client_gone")
PROMPT_SOURCES: Final = ("computed", "cached")
PHASES: Final = ("prefill", "decode", "mixed")
# What Kubernetes' inference gateways ask of a server to choose among several, by the names that vLLM gave it
# (docs.vllm.ai, "Production Metrics").
VLLM: Final = "vllm"


@dataclass(frozen=True, slots=True)
class Gauges:
    """How the engine stands now, as the page shows it.

    `restarts`: of all engines together. `loaded`: every served model that an engine has loaded, by its name.
    """

    running: int
    waiting: int
    kv_used_ratio: float
    restarts: int
    loaded: Mapping[str, Ready]


class Metrics:
    """All of them, in a registry of their own. Mutable: the registry, `_restarts` and `_preempted` (how many were
    counted; an engine counts its preemptions anew).
    """

    def __init__(self, model: str, compat: Collection[str] = ()) -> None:
        """`compat`: other servers by whose names the most important ones are published, too."""
        self.registry = CollectorRegistry()
        self._model = model
        self._restarts = self._preempted = 0
        ProcessCollector(registry=self.registry)
        self._make_request_metrics()
        self._make_engine_metrics()
        self._vllm = self._make_vllm_metrics() if VLLM in compat else None

    def _make_request_metrics(self) -> None:
        requests = self._counter("requests", "Requests that ran, by how they ended.", "model", "finish_reason")
        self._requests = {reason: requests.labels(self._model, reason) for reason in FINISH_REASONS}
        aborts = self._counter("aborts", "Requests that ended without a whole answer.", "reason")
        self._aborts = {reason: aborts.labels(reason) for reason in ABORT_REASONS}
        prompt = self._counter(
            "prompt_tokens", "Prompt tokens, computed (after a preemption again) or from the prefix cache.", "source"
        )
        self._prompt = {source: prompt.labels(source) for source in PROMPT_SOURCES}
        embeddings = self._counter("embedding_requests", "Requests for embeddings, by how they ended.", "outcome")
        self._embeddings = {outcome: embeddings.labels(outcome) for outcome in EMBEDDING_OUTCOMES}
        self._embedding_tokens = self._counter("embedding_tokens", "Tokens of texts that were embedded.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._request_output = self._histogram("request_output_tokens", "Tokens generated for a request.", TOKENS)
        self._duration = self._histogram("request_duration_seconds", "From acceptance to the end.", LATENCY_S)
        self._decode = self._histogram("decode_seconds", "From the first token to the last.", LATENCY_S)
        self._queue_wait = self._histogram(
            "queue_wait_seconds", "From acceptance to the first work on a sequence.", LATENCY_S
        )
        self._prefill = self._histogram(
            "prefill_seconds", "From the first work on a sequence to its first token.", LATENCY_S
        )
        self._compile = self._histogram(
            "grammar_compile_seconds", "Compiling a schema or grammar that was not kept from before.", LATENCY_S
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From acceptance to the first token.", FIRST_TOKEN_S
        )
        self._between_tokens = self._histogram(
            "inter_token_latency_seconds",
            "Between two tokens of one sequence; of those that came at once, their share.",
            BETWEEN_TOKENS_S,
        )

    def _make_vllm_metrics(self) -> tuple[Gauge, ...]:
        names = (
            ("num_requests_running", "As tollhouse_sidecar_requests_running."),
            ("num_requests_waiting", "As tollhouse_sidecar_requests_waiting."),
            ("kv_cache_usage_perc", "As tollhouse_sidecar_kv_cache_used_ratio: 1 is all of it."),
        )
        made = [Gauge(f"vllm:{name}", text, ["model_name"], registry=self.registry) for name, text in names]
        return tuple(gauge.labels(self._model) for gauge in made)

    def _make_engine_metrics(self) -> None:
        steps = self._histogram("step_duration_seconds", "Duration of an engine step.", BETWEEN_TOKENS_S, "phase")
        self._steps = {phase: steps.labels(phase) for phase in PHASES}
        self._overhead = self._histogram("step_overhead_ratio", "Share of a step outside the forward.", SHARES)
        self._batch_size = self._histogram("batch_size", "Sequences that run after a step.", SEQUENCES)
        self._running = self._gauge("requests_running", "Sequences that the engine runs.")
        self._waiting = self._gauge("requests_waiting", "Sequences that wait for the engine.")
        self._kv_used = self._gauge("kv_cache_used_ratio", "Share of the KV cache in use.")
        self._preemptions = self._counter("preemptions", "Times a running sequence had to make room for another.")
        self._queried = self._counter("prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache.")
        self._hits = self._counter("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.")
        self._prefixes = self._gauge("prefix_cache_tokens", "Tokens that the prefix cache holds.")
        self._engine_restarts = self._counter(
            "engine_restarts", "Times an engine process was started again, of any model."
        )
        self._load = self._gauge("model_load_seconds", "How long loading took.", "model", "phase")
        self._memory = self._gauge("memory_bytes", "Memory by use.", "model", "kind")
        self._info = self._gauge("model_info", "The loaded models.", "model", "dtype", "quantization", "device", "tier")

    def accepted(self, prompt_tokens: int) -> None:
        self._request_prompt.observe(prompt_tokens)

    def first_token(self, since_accepted_s: float) -> None:
        self._first_token.observe(since_accepted_s)

    def next_tokens(self, count: int, since_last_s: float) -> None:
        """So many tokens came at once, that long after the ones before them."""
        for _ in range(count):
            self._between_tokens.observe(since_last_s / count)

    def generated(self, tokens: int) -> None:
        """So many more tokens count."""
        self._generated.inc(tokens)

    def ended(self, finish_reason: str, completion_tokens: int, duration_s: float, decode_s: float | None) -> None:
        """A request is over. `finish_reason` is one of `FINISH_REASONS`."""
        self._requests[finish_reason].inc()
        self._request_output.observe(completion_tokens)
        self._duration.observe(duration_s)
        if decode_s is not None:
            self._decode.observe(decode_s)

    def grammar_compiled(self, seconds: float) -> None:
        self._compile.observe(seconds)

    def aborted(self, reason: str) -> None:
        """`reason` is one of `ABORT_REASONS`."""
        self._aborts[reason].inc()

    def embedded(self, outcome: str, tokens: int) -> None:
        """A request for embeddings is over. `outcome` is one of `EMBEDDING_OUTCOMES`."""
        self._embeddings[outcome].inc()
        if outcome == "complete":
            self._embedding_tokens.inc(tokens)

    def step(self, step: Step) -> None:
        """An engine step has run."""
        self._prompt["computed"].inc(step.prefill_tokens)
        self._prompt["cached"].inc(step.cached_tokens)
        self._queried.inc(step.queried_tokens)
        self._hits.inc(step.cached_tokens)
        self._prefixes.set(step.prefix_tokens)
        # Fewer than before are another engine's.
        self._preemptions.inc(step.preemptions - (self._preempted if step.preemptions >= self._preempted else 0))
        self._preempted = step.preemptions
        for wait_s in step.waits_s:
            self._queue_wait.observe(wait_s)
        for prefill_s in step.prefills_s:
            self._prefill.observe(prefill_s)
        # Without tokens nothing ran: it tells of sequences that were ended.
        if step.total_s <= 0 or not (step.prefill_tokens or step.decode_tokens):
            return
        self._steps[_phase(step)].observe(step.total_s)
        self._overhead.observe(max(0.0, 1 - step.forward_s / step.total_s))
        self._batch_size.observe(step.running)

    def observe(self, gauges: Gauges) -> None:
        """Bring the gauges up to date, before the page is rendered."""
        self._running.set(gauges.running)
        self._waiting.set(gauges.waiting)
        self._kv_used.set(gauges.kv_used_ratio)
        self._engine_restarts.inc(max(0, gauges.restarts - self._restarts))
        self._restarts = max(self._restarts, gauges.restarts)
        if self._vllm is not None:
            for gauge, value in zip(self._vllm, (gauges.running, gauges.waiting, gauges.kv_used_ratio), strict=True):
                gauge.set(value)
        # A restarted engine may have come up in another tier: only what is loaded now is told.
        self._info.clear()
        for model, info in gauges.loaded.items():
            self._loaded(model, info)

    def render(self) -> bytes:
        """The page. Takes long: call it in a thread."""
        return generate_latest(self.registry)

    def _loaded(self, model: str, info: Ready) -> None:
        quantization = "none" if info.precision in {"fp32", "bf16", "fp16"} else info.precision
        self._info.labels(model, info.dtype, quantization, info.device, info.tier).set(1)
        for phase, seconds in info.load_seconds.items():
            self._load.labels(model, phase).set(seconds)
        self._memory.labels(model, "weights").set(info.weights_bytes)
        self._memory.labels(model, "kv").set(info.kv_bytes)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tollhouse_sidecar_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tollhouse_sidecar_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tollhouse_sidecar_{name}", text, labels, buckets=buckets, registry=self.registry)


def _phase(step: Step) -> str:
    if step.prefill_tokens and step.decode_tokens:
        return "mixed"
    return "prefill" if step.prefill_tokens else "decode"
