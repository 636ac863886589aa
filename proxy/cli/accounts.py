"""`tollhouse accounts create|list|show|update|disable|enable`."""

from typing import Any, Final

import click
import msgspec
from rich.console import RenderableType

from proxy.admin.records import Account, AccountChanges, AccountLimitChanges, AccountLimits, NewAccount
from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.options import Named, day, limit_options, limits_of, metadata_option, minute, pairs
from proxy.cli.program import program
from proxy.cli.screen import Screen

LIMITS: Final = AccountLimitChanges.__struct_fields__


@click.group("accounts", cls=HouseGroup)
def accounts() -> None:
    """Create, list and change the accounts that keys belong to."""


@accounts.command("create")
@click.argument("name", type=Named())
@metadata_option
@limit_options(LIMITS, "all its keys together")
@pass_invocation
def create(invocation: Invocation, /, name: str, **options: Any) -> None:
    """Make an account of the name NAME."""
    limits = msgspec.convert(limits_of(options, LIMITS), AccountLimits)
    wanted = NewAccount(name=name, limits=limits, metadata=dict(options["metadata"]))
    made = at_the_desk(invocation.settings(), lambda desk: desk.create_account(wanted))
    invocation.screen.reply(made, lambda: f"Account {made.name} is made, with the id {made.id}.")


@accounts.command("list")
@pass_invocation
def list_(invocation: Invocation) -> None:
    """List the accounts."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.list_accounts())
    invocation.screen.reply({"rows": found}, lambda: _table(invocation.screen, found))


def _table(screen: Screen, found: list[Account]) -> RenderableType:
    if not found:
        screen.remark(f"There are no accounts. To make one: {program()} accounts create NAME")
    return screen.table(
        ["NAME", "ID", "CREATED", "STATE"],
        [[account.name, account.id, day(account.created), _state(account)] for account in found],
    )


@accounts.command("show")
@click.argument("name", type=Named())
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Show the account NAME, which may also be an id."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.show_account(name))
    invocation.screen.reply(found, lambda: _shown(invocation.screen, found))


def _shown(screen: Screen, account: Account) -> RenderableType:
    rows = [
        ("name", account.name),
        ("id", account.id),
        ("state", _state(account)),
        ("limits", pairs(msgspec.to_builtins(account.limits)) or "those of its keys' tiers"),
        ("created", minute(account.created)),
        ("metadata", pairs(account.metadata) or "none"),
    ]
    return screen.table(["FIELD", "VALUE"], [list(row) for row in rows])


def _state(account: Account) -> str:
    return "disabled" if account.disabled else "active"


@accounts.command("update")
@click.argument("name", type=Named())
@click.option("--name", "new_name", type=Named(), metavar="NAME", help="Another name.")
@metadata_option
@limit_options(LIMITS, "all its keys together")
@pass_invocation
def update(invocation: Invocation, /, name: str, new_name: str | None, **options: Any) -> None:
    """Change the account NAME. What is not given stays. `--metadata NAME=` removes a note."""
    found: dict[str, Any] = {} if new_name is None else {"name": new_name}
    found["limits"] = limits_of(options, LIMITS)
    found["metadata"] = {label: value or None for label, value in options["metadata"]}
    changes = msgspec.convert(found, AccountChanges)
    changed = at_the_desk(invocation.settings(), lambda desk: desk.update_account(name, changes))
    invocation.screen.reply(changed, lambda: _shown(invocation.screen, changed))


@accounts.command("disable")
@click.argument("name", type=Named())
@pass_invocation
def disable(invocation: Invocation, name: str) -> None:
    """Refuse all keys of the account NAME; running servers cut their running requests too."""
    changed = at_the_desk(invocation.settings(), lambda desk: desk.disable_account(name))
    invocation.screen.reply(changed, lambda: f"Account {changed.name} is disabled.")


@accounts.command("enable")
@click.argument("name", type=Named())
@pass_invocation
def enable(invocation: Invocation, name: str) -> None:
    """Let the keys of the account NAME in again."""
    changed = at_the_desk(invocation.settings(), lambda desk: desk.enable_account(name))
    invocation.screen.reply(changed, lambda: f"Account {changed.name} is enabled.")
