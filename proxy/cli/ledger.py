"""`tollhouse ledger check`: whether the books are right."""

import click

from proxy.cli.desk import at_the_desk
from proxy.cli.exits import Exit
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation


@click.group("ledger", cls=HouseGroup)
def ledger() -> None:
    """Check the books."""


@ledger.command("check")
@pass_invocation
def check(invocation: Invocation) -> int:
    """Compare the ledger with its running totals; exit code 1 if anything is wrong."""
    problems = at_the_desk(invocation.settings(), lambda desk: desk.check_ledger())
    invocation.screen.reply({"problems": problems}, lambda: "\n".join(problems) or "The books are right.")
    return Exit.FAILED if problems else Exit.OK
