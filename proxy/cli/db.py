"""`tollhouse db upgrade|current`: the schema of the database."""

import click
import msgspec

from proxy.cli.desk import explained
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.store import migrate
from proxy.store.address import described


class Schema(msgspec.Struct, frozen=True):
    """The revision the database has, and the one this version needs."""

    database: str
    revision: str | None
    head: str


@click.group("db", cls=HouseGroup)
def db() -> None:
    """Bring the database's schema up to date."""


@db.command("upgrade")
@pass_invocation
def upgrade(invocation: Invocation) -> None:
    """Create the tables, or change them to what this version needs. Nothing is lost."""
    settings = invocation.settings().database
    with explained():
        before = migrate.current(settings)
        migrate.upgrade(settings)
        done = Schema(described(settings), migrate.current(settings), migrate.head())
    was = "created" if before is None else "already there" if before == done.revision else f"upgraded from {before}"
    invocation.screen.reply(done, lambda: f"{done.database}: schema {done.revision}, {was}.")


@db.command("current")
@pass_invocation
def current(invocation: Invocation) -> None:
    """Show the schema's revision, and whether it is the one this version needs."""
    settings = invocation.settings().database
    with explained():
        found = Schema(described(settings), migrate.current(settings), migrate.head())
    invocation.screen.reply(found, lambda: _described(found))


def _described(found: Schema) -> str:
    if found.revision is None:
        return f"{found.database}: no tables yet. To make them: tollhouse db upgrade"
    if found.revision != found.head:
        return (
            f"{found.database}: schema {found.revision}, behind {found.head}. To bring it there: tollhouse db upgrade"
        )
    return f"{found.database}: schema {found.revision}, up to date."
