"""`tollhouse db upgrade|current|backup`: the database as a whole."""

from pathlib import Path

import click
import msgspec

from proxy.cli.desk import explained
from proxy.cli.exits import CommandError
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.program import program
from proxy.store import migrate
from proxy.store.address import described, is_file
from proxy.store.backup import back_up


class Schema(msgspec.Struct, frozen=True):
    """The revision the database has, and the one this version needs."""

    database: str
    revision: str | None
    head: str


class Backup(msgspec.Struct, frozen=True):
    """A copy of the database."""

    database: str
    file: str
    size_bytes: int


@click.group("db", cls=HouseGroup)
def db() -> None:
    """Bring the database's schema up to date, and back it up."""


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


@db.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@pass_invocation
def backup(invocation: Invocation, file: Path) -> None:
    """Copy a SQLite database into FILE, as it is at one moment, beside a running server.

    FILE must not be there yet, and is this user's alone. The root secret is not in it: keep that apart.

    tollhouse db backup backups/monday.db
    """
    settings = invocation.settings().database
    with explained():
        if not is_file(settings):
            raise CommandError(
                f"{described(settings)} is a server's.", hint="Use pg_dump, as docs/operations.md describes."
            )
        done = Backup(described(settings), str(file), back_up(settings, file))
    invocation.screen.reply(done, lambda: f"{done.file}: {done.size_bytes:,} bytes, checked.")


def _described(found: Schema) -> str:
    if found.revision is None:
        return f"{found.database}: no tables yet. To make them: {program()} db upgrade"
    if not migrate.is_known(found.revision):
        return (
            f"{found.database}: schema {found.revision}, which this version does not know (it needs {found.head}): "
            f"{migrate.NEWER}. {migrate.INSTEAD}"
        )
    if found.revision != found.head:
        return (
            f"{found.database}: schema {found.revision}, behind {found.head}. To bring it there: {program()} db upgrade"
        )
    return f"{found.database}: schema {found.revision}, up to date."
