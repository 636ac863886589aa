"""`tollhouse console`: a key for the console that is good for some hours, and the address with the key in it."""

import datetime as dt
from typing import Final, get_args

import click
import msgspec
from rich.console import RenderableType

from proxy.admin import table
from proxy.admin.errands import Errands
from proxy.admin.records import NewAccount, NewKey, Nothing
from proxy.cli.desk import at_the_desk
from proxy.cli.exits import CommandError
from proxy.cli.invocation import Invocation, command, pass_invocation
from proxy.cli.options import Span, minute
from proxy.cli.screen import Screen
from proxy.console.files import BASE
from proxy.console.front import is_on
from proxy.scopes import ADMIN_READ, Scope
from proxy.sockets import url

ACCOUNT: Final = "console"


class Opened(msgspec.Struct, frozen=True):
    """Where the console is, with the key behind the `#`, which a browser keeps to itself."""

    url: str
    key_id: str
    secret: str
    expires: dt.datetime


@command("console")
@click.option(
    "--expires", "span_s", type=Span(), default="12h", metavar="SPAN", help="How long the key is good: 30m, 7d; 12h."
)
@click.option("--read-only", is_flag=True, help="A key that may look and change nothing.")
@pass_invocation
def console(invocation: Invocation, *, span_s: float, read_only: bool) -> None:
    """Make a key for the console in a browser, and show the address with the key in it.

    The key belongs to the account `console`, and may do everything. Whoever sees the address can use it.
    """
    settings = invocation.settings()
    if not is_on(settings.admin):
        raise CommandError("There is no console here.", hint="`admin.console: true` in the configuration makes one.")
    made = at_the_desk(settings, lambda desk: _opened(desk, span_s, read_only=read_only))
    invocation.screen.reply(made, lambda: _shown(invocation.screen, made))


async def _opened(desk: Errands, span_s: float, *, read_only: bool) -> Opened:
    state = await desk.do(table.STATE, Nothing())
    if not state.tiers:
        # Before it said them.
        raise CommandError(f"The running server is still Tollhouse {state.version}.", hint="Start it anew.")
    if ACCOUNT not in {account.name for account in await desk.list_accounts()}:
        await desk.create_account(NewAccount(ACCOUNT))
    now = dt.datetime.now(dt.UTC)
    expires = now + dt.timedelta(seconds=span_s)
    scopes: list[Scope] = [ADMIN_READ] if read_only else list(get_args(Scope))
    # Of little weight: what an administrator asks for has no limits, only chats of this key do. The server's own: the
    # files may be ahead of it, and wrong.
    tier = min(state.tiers)
    name = f"{now:%Y-%m-%d %H:%M}"
    key = await desk.create_key(NewKey(account=ACCOUNT, tier=tier, name=name, expires=expires, scopes=scopes))
    return Opened(f"{url(state.admin_host, state.admin_port)}{BASE}#key={key.secret}", key.key_id, key.secret, expires)


def _shown(screen: Screen, made: Opened) -> RenderableType:
    screen.remark(f"Key {made.key_id}, good until {minute(made.expires)} UTC. Open this, and show it to nobody:")
    return made.url
