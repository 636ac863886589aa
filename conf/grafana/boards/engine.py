"""What the engines of the sidecars do."""

from typing import Final

from boards.panel import Board, P, Panel, Row, S, gauge, mean, quantile, quantiles, rate, ratio

BOARD: Final = Board(
    "Tollhouse: engine",
    "What the sidecars' engines do: speed, queue, memory, and the caches.",
    (
        Row(
            "Work",
            (
                Panel(
                    "Generated tokens",
                    "Tokens that the engine generated each second.",
                    "short",
                    ((rate(f"{S}generation_tokens_total", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Prompt tokens",
                    "Prompt tokens each second: computed, or taken from the prefix cache.",
                    "short",
                    ((rate(f"{S}prompt_tokens_total", "source"), "{{source}}"),),
                    "area",
                ),
                Panel(
                    "Requests by end",
                    "Requests that ended each second, by how.",
                    "reqps",
                    ((rate(f"{S}requests_total", "finish_reason"), "{{finish_reason}}"),),
                    "area",
                ),
                Panel(
                    "Queue",
                    "Sequences that wait for the engine.",
                    "short",
                    ((gauge(f"{S}requests_waiting", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Batch size",
                    "Sequences that run after a step, on average, and those that run now.",
                    "short",
                    (
                        (mean(f"{S}batch_size", "instance"), "{{instance}} batch"),
                        (gauge(f"{S}requests_running", "instance"), "{{instance}} running"),
                    ),
                ),
                Panel(
                    "Broken off",
                    "Requests each second that ended without a whole answer, by reason.",
                    "reqps",
                    ((rate(f"{S}aborts_total", "reason"), "{{reason}}"),),
                ),
            ),
        ),
        Row(
            "Embeddings",
            (
                Panel(
                    "Requests for embeddings",
                    "Requests for embeddings each second, by how they ended.",
                    "reqps",
                    ((rate(f"{S}embedding_requests_total", "outcome"), "{{outcome}}"),),
                    "area",
                ),
                Panel(
                    "Embedded tokens",
                    "Tokens of embedded texts each second.",
                    "short",
                    ((rate(f"{S}embedding_tokens_total", "instance"), "{{instance}}"),),
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Waiting for the engine",
                    "From a sequence's acceptance to the first work on it.",
                    "s",
                    quantiles(f"{S}queue_wait_seconds"),
                ),
                Panel(
                    "Reading prompts",
                    "From the first work on a sequence to its first token.",
                    "s",
                    quantiles(f"{S}prefill_seconds"),
                ),
                Panel(
                    "First token",
                    "From acceptance by the sidecar to the first token.",
                    "s",
                    quantiles(f"{S}time_to_first_token_seconds"),
                ),
                Panel(
                    "Between tokens",
                    "Time between two tokens of one sequence.",
                    "s",
                    quantiles(f"{S}inter_token_latency_seconds"),
                ),
                Panel(
                    "Writing answers",
                    "From the first token of an answer to its last.",
                    "s",
                    quantiles(f"{S}decode_seconds"),
                ),
                Panel(
                    "Whole requests",
                    "From acceptance by the sidecar to the end.",
                    "s",
                    quantiles(f"{S}request_duration_seconds"),
                ),
                Panel(
                    "Step duration, p95",
                    "Duration of an engine step, by what it worked on.",
                    "s",
                    ((quantile(0.95, f"{S}step_duration_seconds", "phase"), "{{phase}}"),),
                ),
                Panel(
                    "Outside the forward",
                    "Share of a step that is not spent in the model, on average.",
                    "percentunit",
                    ((mean(f"{S}step_overhead_ratio", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Compiling grammars",
                    "Time to compile a schema or grammar that was not kept from before.",
                    "s",
                    quantiles(f"{S}grammar_compile_seconds"),
                ),
            ),
        ),
        Row(
            "Memory",
            (
                Panel(
                    "KV cache",
                    "Share of the KV cache in use.",
                    "percentunit",
                    ((gauge(f"{S}kv_cache_used_ratio", "instance", "max"), "{{instance}}"),),
                    most=1,
                ),
                Panel(
                    "Prefix cache hits",
                    "Share of the prompt tokens that were found in the prefix cache.",
                    "percentunit",
                    (
                        (
                            ratio(
                                rate(f"{S}prefix_cache_hit_tokens_total", "instance"),
                                rate(f"{S}prefix_cache_query_tokens_total", "instance"),
                            ),
                            "{{instance}}",
                        ),
                    ),
                    most=1,
                ),
                Panel(
                    "Prefix cache size",
                    "Tokens that the prefix cache holds.",
                    "short",
                    ((gauge(f"{S}prefix_cache_tokens", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Made to wait again",
                    "Sequences each second that had to make room for others, and begin again later.",
                    "ops",
                    ((rate(f"{S}preemptions_total", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Memory of the models",
                    "Bytes of the weights of each model, and what the KV cache may take.",
                    "bytes",
                    ((gauge(f"{S}memory_bytes", "instance, model, kind"), "{{instance}} {{model}} {{kind}}"),),
                    "area",
                ),
                Panel(
                    "Length of prompts and answers",
                    "Nineteen in twenty are no longer, in tokens.",
                    "short",
                    (
                        (quantile(0.95, f"{S}request_prompt_tokens"), "prompts"),
                        (quantile(0.95, f"{S}request_output_tokens"), "answers"),
                    ),
                ),
            ),
        ),
        Row(
            "State",
            (
                Panel(
                    "Sidecars that are ready",
                    "Whether the proxy finds each sidecar ready: 1 or 0.",
                    "short",
                    ((gauge(f"{P}upstream_up", "upstream", "min"), "{{upstream}}"),),
                ),
                Panel(
                    "Connections to sidecars",
                    "The proxy's connections to its sidecars, by whether a request runs on them.",
                    "short",
                    ((gauge(f"{P}upstream_connections", "state"), "{{state}}"),),
                    "area",
                ),
                Panel(
                    "Engine restarts",
                    "Times an engine process was started again within the last hour.",
                    "short",
                    ((f"sum by (instance) (increase({S}engine_restarts_total{{@}}[1h]))", "{{instance}}"),),
                    "stat",
                    ((1, "orange"),),
                ),
                Panel(
                    "Models",
                    "The loaded models: precision, device and the execution tier that the engine runs them in.",
                    "short",
                    (
                        (
                            gauge(f"{S}model_info", "model, dtype, quantization, device, tier", "max"),
                            "{{model}} {{dtype}} {{quantization}} {{device}} {{tier}}",
                        ),
                    ),
                    "stat",
                    named=True,
                ),
                Panel(
                    "Model load",
                    "How long loading each model took, by phase.",
                    "s",
                    (
                        (
                            gauge(f"{S}model_load_seconds", "instance, model, phase", "max"),
                            "{{instance}} {{model}} {{phase}}",
                        ),
                    ),
                    "stat",
                ),
            ),
        ),
    ),
)
