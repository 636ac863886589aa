"""What the gate lets in and refuses."""

from typing import Final

from boards.panel import Board, P, Panel, Row, gauge, rate

BOARD: Final = Board(
    "Tollhouse: gate and abuse",
    "What the gate lets in and refuses, and what looks like abuse.",
    (
        Row(
            "Decisions",
            (
                Panel(
                    "Policy decisions",
                    "What admission decided each second.",
                    "reqps",
                    ((rate(f"{P}policy_decisions_total", "decision"), "{{decision}}"),),
                    "area",
                ),
                Panel(
                    "Refusals by rule",
                    "Requests that a rule refused each second.",
                    "reqps",
                    ((rate(f"{P}policy_decisions_total", "policy", ', decision="refuse"'), "{{policy}}"),),
                    "area",
                ),
                Panel(
                    "Refusals in shadow",
                    "Requests each second that a rule in shadow would have refused.",
                    "reqps",
                    ((rate(f"{P}policy_decisions_total", "policy", ', decision="shadow"'), "{{policy}}"),),
                ),
                Panel(
                    "Errors by origin",
                    "Requests that ended in an error each second, by who caused it.",
                    "reqps",
                    ((rate(f"{P}errors_total", "origin"), "{{origin}}"),),
                    "area",
                ),
                Panel(
                    "Refused at the gate",
                    "Requests each second that were refused for what they are: no valid key (401), not allowed "
                    "(403), unknown (404), too large (413), too many (429).",
                    "reqps",
                    ((rate(f"{P}requests_total", "code", ', code=~"401|403|404|413|429"'), "{{code}}"),),
                    "area",
                ),
                Panel(
                    "Unknown places",
                    "Requests each second to paths, or for models, that there are none of.",
                    "reqps",
                    (
                        (rate(f"{P}requests_total", more=', endpoint="_other"'), "paths"),
                        (rate(f"{P}requests_total", more=', model="_other"'), "models, or none"),
                    ),
                ),
            ),
        ),
        Row(
            "Abuse",
            (
                Panel(
                    "Connections",
                    "Connections of clients that are open now.",
                    "short",
                    ((gauge(f"{P}connections", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Connections refused",
                    "Connections each second that were refused before a request was read, by the limit that was "
                    "reached.",
                    "ops",
                    ((rate(f"{P}connections_refused_total", "reason"), "{{reason}}"),),
                ),
                Panel(
                    "Keys from many addresses",
                    "Times within the last hour that a key was used from more addresses than its tier expects: it "
                    "may be leaked.",
                    "short",
                    ((f"sum(increase({P}keys_from_many_addresses_total{{@}}[1h]))", "keys"),),
                    "stat",
                    ((1, "orange"),),
                ),
                Panel(
                    "Nonces remembered",
                    "Nonces of signed requests that are remembered as used, but for those in a Valkey.",
                    "short",
                    ((gauge(f"{P}replay_entries"), "nonces"),),
                    "stat",
                ),
                Panel(
                    "Revocation checked",
                    "Time since the database last said which keys were changed.",
                    "s",
                    ((f"time() - min({P}keys_last_check_timestamp_seconds{{@}})", "ago"),),
                    "stat",
                    ((30, "red"),),
                ),
                Panel(
                    "Clock set",
                    "Times within the last day that the machine's clock was set by more than a minute.",
                    "short",
                    ((f"sum(increase({P}clock_steps_total{{@}}[1d]))", "times"),),
                    "stat",
                    ((1, "orange"),),
                ),
                Panel(
                    "Valkey",
                    "1 if limits are counted for all proxies together, 0 while Valkey is away and where there is none.",
                    "short",
                    ((gauge(f"{P}valkey_up", how="min"), "up"),),
                    "stat",
                ),
            ),
        ),
    ),
)
