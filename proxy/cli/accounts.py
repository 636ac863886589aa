"""`tollhouse accounts create|list`."""

import click
from rich.console import RenderableType

from proxy.admin.actions import Account, NewAccount
from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.screen import Screen


@click.group("accounts", cls=HouseGroup)
def accounts() -> None:
    """Create and list the accounts that keys belong to."""


@accounts.command("create")
@click.argument("name")
@pass_invocation
def create(invocation: Invocation, name: str) -> None:
    """Make an account of the name NAME."""
    made = at_the_desk(invocation.settings(), lambda desk: desk.create_account(NewAccount(name=name)))
    invocation.screen.reply(made, lambda: f"Account {made.name} is made, with the id {made.id}.")


@accounts.command("list")
@pass_invocation
def list_(invocation: Invocation) -> None:
    """List the accounts."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.list_accounts())
    invocation.screen.reply({"rows": found}, lambda: _table(invocation.screen, found))


def _table(screen: Screen, found: list[Account]) -> RenderableType:
    if not found:
        screen.remark("There are no accounts. To make one: tollhouse accounts create NAME")
    return screen.table(
        ["NAME", "ID", "CREATED"],
        [[account.name, account.id, account.created.strftime("%Y-%m-%d")] for account in found],
    )
