"""`tollhouse keys create|list|revoke`."""

import datetime as dt
import re
from typing import Final

import click
from rich.console import RenderableType
from rich.text import Text
from typing_extensions import override

from proxy.admin.actions import CreatedKey, Key, NewKey
from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.screen import Screen

_DAYS: Final = re.compile(r"([1-9][0-9]{0,4})d")


class Moment(click.ParamType[dt.datetime]):
    """`90d` from now, or a date or moment of ISO 8601; one without a time zone is UTC."""

    name = "moment"

    @override
    def convert(
        self, value: str | dt.datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        if days := _DAYS.fullmatch(value):
            return dt.datetime.now(dt.UTC) + dt.timedelta(days=int(days[1]))
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of days such as 90d nor a date such as 2027-01-31.", param, ctx)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


@click.group("keys", cls=HouseGroup)
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command("create")
@click.option("--account", required=True, metavar="NAME", help="The account it belongs to, by name or id.")
@click.option("--tier", required=True, metavar="TIER", help="The tier of the policy that sets its limits.")
@click.option("--name", required=True, metavar="NAME", help="What you will know it by.")
@click.option(
    "--model", "models", multiple=True, metavar="MODEL", help="A model it may use, of its tier's; repeatable."
)
@click.option("--expires", type=Moment(), metavar="WHEN", help="90d, or a date: 2027-01-31. Never if not given.")
@click.option(
    "--signed", is_flag=True, help="One that signs its requests and is in none of them; see `tollhouse sign`."
)
@pass_invocation
def create(
    invocation: Invocation,
    *,
    account: str,
    tier: str,
    name: str,
    models: tuple[str, ...],
    expires: dt.datetime | None,
    signed: bool,
) -> None:
    """Make a key and show it, once. Its secret is the only line on stdout."""
    wanted = NewKey(account=account, tier=tier, name=name, models=list(models) or None, expires=expires, signed=signed)
    made = at_the_desk(invocation.settings(), lambda desk: desk.create_key(wanted))
    invocation.screen.reply(made, lambda: _created(invocation.screen, made))


def _created(screen: Screen, made: CreatedKey) -> RenderableType:
    screen.remark(f"Key {made.key_id} ({made.name}) of account {made.account}, tier {made.tier}.")
    screen.remark(Text("Keep it: it is not shown again.", "bold"))
    return made.secret


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Also the revoked ones.")
@pass_invocation
def list_(invocation: Invocation, everything: bool) -> None:
    """List the keys, without their secrets."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.list_keys())
    shown = [key for key in found if everything or not key.revoked]
    invocation.screen.reply({"rows": shown}, lambda: _table(invocation.screen, shown))


def _table(screen: Screen, found: list[Key]) -> RenderableType:
    if not found:
        screen.remark("There are no keys. To make one: tollhouse keys create --account NAME --tier TIER --name NAME")
    rows = [
        [
            key.key_id,
            key.name,
            key.account,
            key.tier,
            ", ".join(key.models) if key.models else "all of its tier",
            _day(key.expires) if key.expires else "never",
            key.last_used.strftime("%Y-%m-%d %H:%M") if key.last_used else "never",
            "revoked" if key.revoked else "active",
        ]
        for key in found
    ]
    return screen.table(["KEY", "NAME", "ACCOUNT", "TIER", "MODELS", "EXPIRES", "LAST USED", "STATE"], rows)


def _day(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%d")


@keys.command("revoke")
@click.argument("key_id")
@pass_invocation
def revoke(invocation: Invocation, key_id: str) -> None:
    """End the key KEY_ID for good; a running server cuts its running requests too."""
    revoked = at_the_desk(invocation.settings(), lambda desk: desk.revoke_key(key_id))
    invocation.screen.reply(revoked, lambda: f"Key {revoked.key_id} ({revoked.name}) is revoked.")
