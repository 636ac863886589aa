"""`tollhouse audit list`: what was done to accounts and keys, and by whom."""

import click
from rich.console import RenderableType

from proxy.admin.records import AuditEvent, AuditQuery
from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.screen import Screen


@click.group("audit", cls=HouseGroup)
def audit() -> None:
    """Show what was done to accounts and keys, and by whom."""


@audit.command("list")
@click.option("--target", metavar="ID", help="Only what was done to the key or account of this id.")
@click.option("--actor", metavar="WHO", help="Only what was done by this one: a key's id, socket:UID, cli.")
@click.option("--after", metavar="EVENT", help="Go on behind the event of this id, the last one of a list before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, help="How many at most; 100.")
@pass_invocation
def list_(invocation: Invocation, target: str | None, actor: str | None, after: str | None, limit: int) -> None:
    """List the events, the newest first."""
    wanted = AuditQuery(after, limit, target, actor)
    found = at_the_desk(invocation.settings(), lambda desk: desk.list_audit(wanted))
    invocation.screen.reply({"rows": found.data, "next": found.next}, lambda: _table(invocation.screen, found.data))
    if found.next is not None:
        invocation.screen.remark(f"There are more: --after {found.next}")


def _table(screen: Screen, found: list[AuditEvent]) -> RenderableType:
    rows = [
        [
            event.time.strftime("%Y-%m-%d %H:%M:%S"),
            event.actor,
            event.action,
            event.target,
            ", ".join(f"{name}: {_told(old)} > {_told(new)}" for name, (old, new) in event.changes.items()),
        ]
        for event in found
    ]
    return screen.table(["TIME (UTC)", "WHO", "ACTION", "TARGET", "CHANGES"], rows)


def _told(value: object) -> str:
    return "none" if value is None else str(value)
