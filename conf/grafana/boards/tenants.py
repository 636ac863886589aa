"""Who uses it, and how near they are to their quotas."""

from typing import Final

from boards.panel import Board, P, Panel, Row, gauge, quantiles, rate

BOARD: Final = Board(
    "Tollhouse: tenants and quotas",
    "Who uses a Tollhouse how much, by tier, and how near keys are to the end of their month's quota.",
    (
        Row(
            "By tier",
            (
                Panel(
                    "Requests by tier",
                    "Requests answered each second, by the tier of their key; none where no key was recognised.",
                    "reqps",
                    ((rate(f"{P}requests_total", "tier"), "{{tier}}"),),
                    "area",
                ),
                Panel(
                    "Tokens by tier",
                    "Input and output tokens charged each second, by the tier of the key.",
                    "short",
                    ((rate(f"{P}tokens_total", "tier", ', type=~"input|output"'), "{{tier}}"),),
                    "area",
                ),
                Panel(
                    "Tokens by model and tier",
                    "Input and output tokens charged each second, by served model and by the tier of the key.",
                    "short",
                    ((rate(f"{P}tokens_total", "model, tier", ', type=~"input|output"'), "{{model}} {{tier}}"),),
                    "area",
                ),
                Panel(
                    "Refused by a limit",
                    "Requests that got 429 each second, by the tier of their key.",
                    "reqps",
                    ((rate(f"{P}requests_total", "tier", ', code="429"'), "{{tier}}"),),
                ),
                Panel(
                    "Waiting for a turn",
                    "Requests that wait for others of their key to end.",
                    "short",
                    ((gauge(f"{P}queue_depth"), "waiting"),),
                ),
                Panel(
                    "Time waited for a turn",
                    "How long requests waited for others of their key to end.",
                    "s",
                    quantiles(f"{P}queue_wait_seconds"),
                ),
            ),
        ),
        Row(
            "Quotas",
            (
                Panel(
                    "Keys by quota used",
                    "Keys by the share of a monthly quota that is used, in percent: their own or their account's, of "
                    "tokens or requests. `over` is above the limit.",
                    "short",
                    ((gauge(f"{P}keys", "quota_band", "max"), "{{quota_band}}"),),
                    "area",
                ),
                Panel(
                    "Nearest to their quota",
                    "Share of a monthly quota that is used, of the keys nearest to theirs. Empty unless "
                    "metrics.quota_top in conf/proxy.yaml says how many.",
                    "percentunit",
                    ((gauge(f"{P}quota_used_ratio", "key, tier", "max"), "{{key}} ({{tier}})"),),
                ),
                Panel(
                    "Soft quotas used up",
                    "Requests each second that were let through though a soft quota is used up, by rule.",
                    "reqps",
                    ((rate(f"{P}policy_decisions_total", "policy", ', decision="warn"'), "{{policy}}"),),
                ),
            ),
        ),
    ),
)
