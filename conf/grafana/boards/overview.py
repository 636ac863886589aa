"""How a Tollhouse does, at a glance."""

from typing import Final

from boards.panel import Board, P, Panel, Row, gauge, mean, quantile, quantiles, rate, ratio

# A page of the API is quick, and says nothing of answers.
OF_MODELS: Final = ', endpoint=~"/v1/(chat/completions|completions|responses|messages|embeddings)"'

BOARD: Final = Board(
    "Tollhouse: overview",
    "How a Tollhouse does: requests, tokens, latency, errors, and whether its books keep up.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Requests now",
                    "Requests answered each second.",
                    "reqps",
                    ((rate(f"{P}requests_total"), "requests"),),
                    "stat",
                ),
                Panel(
                    "Failing",
                    "The share of requests that failed by no fault of the client or the policy.",
                    "percentunit",
                    (
                        (
                            ratio(
                                rate(f"{P}errors_total", more=', origin=~"upstream|internal"'),
                                rate(f"{P}requests_total"),
                            ),
                            "failing",
                        ),
                    ),
                    "stat",
                    ((0.005, "orange"), (0.05, "red")),
                ),
                Panel(
                    "Duration now",
                    "Nineteen in twenty requests to models take no longer, from head to end. Refused ones count.",
                    "s",
                    ((quantile(0.95, f"{P}request_duration_seconds", more=OF_MODELS), "p95"),),
                    "stat",
                ),
                Panel(
                    "First token now",
                    "Nineteen in twenty streamed answers begin no later.",
                    "s",
                    ((quantile(0.95, f"{P}time_to_first_token_seconds"), "p95"),),
                    "stat",
                    ((5, "orange"),),
                ),
                Panel(
                    "Tokens now",
                    "Tokens charged each second, of prompts and answers.",
                    "short",
                    ((rate(f"{P}tokens_total", more=', type=~"input|output"'), "tokens"),),
                    "stat",
                ),
                Panel(
                    "Sidecars ready",
                    "How many sidecars are found ready. One that several proxies share counts once.",
                    "short",
                    ((f"sum({gauge(f'{P}upstream_up', 'upstream', 'max')})", "ready"),),
                    "stat",
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "Requests",
                    "Requests answered each second, by endpoint and status code.",
                    "reqps",
                    ((rate(f"{P}requests_total", "endpoint, code"), "{{endpoint}} {{code}}"),),
                    "area",
                ),
                Panel(
                    "Tokens",
                    "Tokens charged each second, by type. Cached input is a part of input, reasoning of output.",
                    "short",
                    ((rate(f"{P}tokens_total", "type"), "{{type}}"),),
                ),
                Panel(
                    "Errors by type",
                    "Requests that ended in an error each second, by the error's type and by who caused it: the "
                    "client, the policy, the upstream or the proxy itself.",
                    "reqps",
                    ((rate(f"{P}errors_total", "type, origin"), "{{type}} ({{origin}})"),),
                    "area",
                ),
                Panel(
                    "In progress",
                    "Requests and streams being served now, and requests that wait for others of their key.",
                    "short",
                    (
                        (gauge(f"{P}requests_in_progress"), "requests"),
                        (gauge(f"{P}open_streams"), "streams"),
                        (gauge(f"{P}queue_depth"), "waiting"),
                    ),
                ),
                Panel(
                    "Clients that left",
                    "Clients that left each second before their answer was whole, by when they left.",
                    "reqps",
                    ((rate(f"{P}client_disconnects_total", "phase"), "{{phase}}"),),
                ),
                Panel(
                    "Active clients",
                    "Distinct keys that asked within the last five minutes, hour and day.",
                    "short",
                    ((gauge(f"{P}active_clients", "window"), "{{window}}"),),
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Request duration",
                    "From a request's head to the end of its answer, of requests to models. Refused ones count.",
                    "s",
                    quantiles(f"{P}request_duration_seconds", OF_MODELS),
                ),
                Panel(
                    "Time to first token",
                    "From a request's head to the first event of its answer, as the client of a stream sees it.",
                    "s",
                    quantiles(f"{P}time_to_first_token_seconds"),
                ),
                Panel(
                    "Proxy's own time, p99",
                    "What each room of the proxy adds to a request; the model's time is left out.",
                    "s",
                    (
                        (quantile(0.99, f"{P}overhead_seconds", "phase"), "{{phase}}"),
                        (quantile(0.99, f"{P}event_loop_lag_seconds"), "event loop lag"),
                    ),
                ),
            ),
        ),
        Row(
            "Ledger and house",
            (
                Panel(
                    "Ledger queue",
                    "Ledger operations that wait for their commit.",
                    "short",
                    ((gauge(f"{P}ledger_queue_depth"), "operations"),),
                ),
                Panel(
                    "Ledger lag",
                    "Age of the oldest ledger operation that is not on disk. At timeouts.storage_s requests are "
                    "refused.",
                    "s",
                    ((gauge(f"{P}ledger_lag_seconds", "instance", "max"), "{{instance}}"),),
                ),
                Panel(
                    "Ledger commit, p99",
                    "Time of one commit; what arrives meanwhile goes into the next.",
                    "s",
                    ((quantile(0.99, f"{P}ledger_commit_seconds"), "commit"),),
                ),
                Panel(
                    "Ledger batch",
                    "Operations in one commit, on average.",
                    "short",
                    ((mean(f"{P}ledger_batch_size"), "operations"),),
                ),
                Panel(
                    "Ledger failures",
                    "Commits of the ledger that failed each second, each attempt.",
                    "ops",
                    ((rate(f"{P}ledger_failures_total"), "failures"),),
                ),
                Panel(
                    "Free disk",
                    "Share of the disk of the database's file that is free. With Postgres there is none.",
                    "percentunit",
                    (
                        (
                            ratio(gauge(f"{P}disk_free_bytes", "instance"), gauge(f"{P}disk_size_bytes", "instance")),
                            "{{instance}}",
                        ),
                    ),
                    most=1,
                ),
                Panel(
                    "Policy in force",
                    "The revision of the policy; two where proxies disagree.",
                    "short",
                    ((gauge(f"{P}policy_info", "revision"), "{{revision}}"),),
                    "stat",
                    named=True,
                ),
                Panel(
                    "Policy taken",
                    "1 if the policy files were taken when they were last read, 0 if they have a mistake.",
                    "short",
                    ((gauge(f"{P}config_last_reload_successful", how="min"), "taken"),),
                    "stat",
                ),
                Panel(
                    "Policy readings",
                    "Readings of changed policy files within the last hour, by whether they were taken.",
                    "short",
                    ((f"sum by (result) (increase({P}config_reloads_total{{@}}[1h]))", "{{result}}"),),
                    "stat",
                ),
                Panel(
                    "Policy age",
                    "Time since the policy files were last taken.",
                    "s",
                    ((f"time() - max({P}config_last_reload_success_timestamp_seconds{{@}})", "age"),),
                    "stat",
                ),
                Panel(
                    "Proxies",
                    "Proxies that share their limits through a Valkey, as last known; 0 without one.",
                    "short",
                    ((gauge(f"{P}proxies", how="max"), "proxies"),),
                    "stat",
                ),
                Panel(
                    "Version",
                    "What runs, and on which Python.",
                    "short",
                    ((gauge(f"{P}build_info", "version, python"), "{{version}}, Python {{python}}"),),
                    "stat",
                    named=True,
                ),
            ),
        ),
    ),
)
