"""`tollhouse usage`: what each key used in a month, and how much of its quota that is."""

import click
from rich.console import RenderableType

from proxy.admin.records import Usage, UsageRow
from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import Invocation, command, pass_invocation
from proxy.cli.options import Month
from proxy.cli.screen import Screen


@command("usage")
@click.option("--month", type=Month(), metavar="YYYY-MM", help="A UTC calendar month; the current one if not given.")
@click.option("--account", metavar="NAME", help="Only the keys of this account, by name or id.")
@pass_invocation
def usage(invocation: Invocation, month: str | None, account: str | None) -> None:
    """Show what each key used in a month."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.usage(month, account))
    invocation.screen.reply(found, lambda: _table(invocation.screen, found))


def _table(screen: Screen, found: Usage) -> RenderableType:
    screen.remark(f"Usage in {found.period} (UTC)")
    rows = sorted(found.rows, key=lambda row: row.total_tokens, reverse=True)
    return screen.table(
        ["KEY", "NAME", "ACCOUNT", "TIER", "REQUESTS#", "PROMPT#", "COMPLETION#", "TOTAL#", "RESERVED#", "QUOTA#"],
        [
            [
                row.key_id,
                row.name,
                row.account,
                row.tier,
                *(
                    f"{number:,}" if screen.out.is_terminal else str(number)
                    for number in (
                        row.requests,
                        row.prompt_tokens,
                        row.completion_tokens,
                        row.total_tokens,
                        row.reserved_tokens,
                    )
                ),
                _quota(row),
            ]
            for row in rows
        ],
    )


def _quota(row: UsageRow) -> str:
    """The share of the month's tokens or requests that is used up, whichever is nearer its end."""
    shares = [
        used / limit
        for used, limit in ((row.total_tokens, row.monthly_tokens), (row.requests, row.monthly_requests))
        if limit is not None
    ]
    return f"{max(shares):.0%}" if shares else "unlimited"
