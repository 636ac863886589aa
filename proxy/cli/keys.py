"""`tollhouse keys create|list|show|update|rotate|revoke`."""

from typing import Any, Final

import click
import msgspec
from rich.console import RenderableType
from rich.text import Text

from proxy.admin.records import CreatedKey, Key, KeyChanges, KeyLimitChanges, NewKey, Rotation
from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.options import (
    NEVER,
    Moment,
    MomentOrNever,
    Named,
    Span,
    day,
    limit_options,
    limits_of,
    metadata_option,
    minute,
    pairs,
)
from proxy.cli.program import program
from proxy.cli.screen import Screen
from proxy.policy.schema import Overrides
from proxy.scopes import EVERY
from proxy.signing import PUBLIC_PREFIX, SECRET_PREFIX

LIMITS: Final = KeyLimitChanges.__struct_fields__
SCOPE: Final = click.Choice(EVERY)
ANY: Final = "any"


@click.group("keys", cls=HouseGroup)
def keys() -> None:
    """Create, list, change, rotate and revoke API keys."""


@keys.command("create")
@click.option(
    "--account", type=Named(), required=True, metavar="NAME", help="The account it belongs to, by name or id."
)
@click.option(
    "--tier", type=Named(), required=True, metavar="TIER", help="The tier of the policy that sets its limits."
)
@click.option("--name", type=Named(), required=True, metavar="NAME", help="What you will know it by.")
@click.option(
    "--model",
    "models",
    type=Named(),
    multiple=True,
    metavar="MODEL",
    help="A model it may use, of its tier's; repeatable.",
)
@click.option("--expires", type=Moment(), metavar="WHEN", help="90d, or a date: 2027-01-31. Never if not given.")
@click.option(
    "--signed", is_flag=True, help="One that signs its requests and is in none of them; see `tollhouse sign`."
)
@click.option(
    "--scope", "scopes", multiple=True, type=SCOPE, help="What it may do; repeatable. All but admin* if not given."
)
@click.option("--allow-from", multiple=True, metavar="NETWORK", help="Where it may come from, as 192.0.2.0/24.")
@click.option("--deny-from", multiple=True, metavar="NETWORK", help="Where it may not come from; repeatable.")
@metadata_option
@limit_options(LIMITS, "this key alone")
@pass_invocation
def create(invocation: Invocation, /, **options: Any) -> None:
    """Make a key and show it, once. Its secret is the only line on stdout."""
    wanted = NewKey(
        account=options["account"],
        tier=options["tier"],
        name=options["name"],
        models=list(options["models"]) or None,
        expires=options["expires"],
        signed=options["signed"],
        scopes=list(options["scopes"]) or None,
        limits=msgspec.convert(limits_of(options, LIMITS), Overrides),
        metadata=dict(options["metadata"]),
        allow_from=list(options["allow_from"]),
        deny_from=list(options["deny_from"]),
    )
    made = at_the_desk(invocation.settings(), lambda desk: desk.create_key(wanted))
    invocation.screen.reply(made, lambda: _created(invocation.screen, made))


def _created(screen: Screen, made: CreatedKey) -> RenderableType:
    screen.remark(f"Key {made.key_id} ({made.name}) of account {made.account}, tier {made.tier}.")
    if made.old_until is not None:
        screen.remark(f"The secret before it is good until {minute(made.old_until)} UTC.")
    if made.secret.startswith(SECRET_PREFIX):
        screen.remark(f"It signs requests, and they show {PUBLIC_PREFIX}{made.key_id}: see docs/replay.md.")
    screen.remark(Text("Keep it: it is not shown again.", "bold"))
    return made.secret


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Also the revoked ones.")
@click.option("--account", metavar="NAME", help="Only those of this account, by name or id.")
@pass_invocation
def list_(invocation: Invocation, everything: bool, account: str | None) -> None:
    """List the keys, without their secrets."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.list_keys(account))
    shown = [key for key in found if everything or not key.revoked]
    invocation.screen.reply({"rows": shown}, lambda: _table(invocation.screen, shown))


def _table(screen: Screen, found: list[Key]) -> RenderableType:
    if not found:
        screen.remark(f"There are no keys. To make one: {program()} keys create --account NAME --tier TIER --name NAME")
    rows = [
        [
            key.key_id,
            key.name,
            key.account,
            key.tier,
            ", ".join(key.models) if key.models else "all of its tier",
            day(key.expires),
            minute(key.last_used),
            key.state,
        ]
        for key in found
    ]
    return screen.table(["KEY", "NAME", "ACCOUNT", "TIER", "MODELS", "EXPIRES", "LAST USED", "STATE"], rows)


@keys.command("show")
@click.argument("key_id", type=Named())
@pass_invocation
def show(invocation: Invocation, key_id: str) -> None:
    """Show all there is to know of the key KEY_ID, but for its secret."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.show_key(key_id))
    invocation.screen.reply(found, lambda: _shown(invocation.screen, found))


def _shown(screen: Screen, key: Key) -> RenderableType:
    rows = [
        ("key", key.key_id),
        ("name", key.name),
        ("account", key.account),
        ("tier", key.tier),
        ("state", key.state),
        ("models", ", ".join(key.models) if key.models else "all of its tier"),
        ("scopes", ", ".join(key.scopes) if key.scopes else "all but the administrative ones"),
        ("limits", pairs(msgspec.to_builtins(key.limits)) or "its tier's"),
        ("allowed from", ", ".join(key.allow_from) or "everywhere"),
        ("denied from", ", ".join(key.deny_from) or "nowhere"),
        ("created", minute(key.created)),
        ("expires", minute(key.expires)),
        ("last used", minute(key.last_used)),
        ("old secret", f"good until {minute(key.old_until)}" if key.old_until else "none"),
        ("metadata", pairs(key.metadata) or "none"),
    ]
    return screen.table(["FIELD", "VALUE"], [list(row) for row in rows])


@keys.command("update")
@click.argument("key_id", type=Named())
@click.option("--tier", type=Named(), metavar="TIER", help="Another tier.")
@click.option("--name", type=Named(), metavar="NAME", help="Another name.")
@click.option(
    "--model", "models", type=Named(), multiple=True, metavar="MODEL", help="In place of the models it may use so far."
)
@click.option("--every-model", is_flag=True, help="It may use all models of its tier.")
@click.option("--expires", type=MomentOrNever(), metavar="WHEN", help="90d, a date, or `never`.")
@click.option("--scope", "scopes", multiple=True, type=SCOPE, help="What it may do, in place of what so far.")
@click.option("--default-scopes", is_flag=True, help="It may do all but what is administrative.")
@click.option("--allow-from", multiple=True, metavar="NETWORK", help="In place of those so far; `any` is everywhere.")
@click.option("--deny-from", multiple=True, metavar="NETWORK", help="In place of those so far; `any` takes them away.")
@metadata_option
@limit_options(LIMITS, "this key alone")
@pass_invocation
def update(invocation: Invocation, /, key_id: str, **options: Any) -> None:
    """Change the key KEY_ID, from its next request on. What is not given stays. `--metadata NAME=` removes a note."""
    for one, other in (("models", "every_model"), ("scopes", "default_scopes")):
        if options[one] and options[other]:
            raise click.UsageError(f"--{other.replace('_', '-')} and --{one[:-1]} exclude each other.")
    changes = msgspec.convert(_changes(options), KeyChanges)
    changed = at_the_desk(invocation.settings(), lambda desk: desk.update_key(key_id, changes))
    invocation.screen.reply(changed, lambda: _shown(invocation.screen, changed))


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the record has them."""
    found: dict[str, Any] = {name: options[name] for name in ("tier", "name") if options[name] is not None}
    if options["expires"] is not None:
        found["expires"] = None if options["expires"] == NEVER else options["expires"]
    for name, lifted in (("models", "every_model"), ("scopes", "default_scopes")):
        if options[name] or options[lifted]:
            found[name] = list(options[name]) or None
    for name in ("allow_from", "deny_from"):
        if options[name]:
            found[name] = [network for network in options[name] if network != ANY]
    found["limits"] = limits_of(options, LIMITS)
    found["metadata"] = {name: value or None for name, value in options["metadata"]}
    return found


@keys.command("rotate")
@click.argument("key_id", type=Named())
@click.option("--grace", type=Span(), default="24h", metavar="TIME", help="How long the old one is good; 24h.")
@pass_invocation
def rotate(invocation: Invocation, key_id: str, grace: float) -> None:
    """Give the key KEY_ID a new secret and show it, once. The old one is good for a while yet."""
    made = at_the_desk(invocation.settings(), lambda desk: desk.rotate_key(key_id, Rotation(grace_s=grace)))
    invocation.screen.reply(made, lambda: _created(invocation.screen, made))


@keys.command("revoke")
@click.argument("key_id", type=Named())
@pass_invocation
def revoke(invocation: Invocation, key_id: str) -> None:
    """End the key KEY_ID for good; running servers cut its running requests too."""
    revoked = at_the_desk(invocation.settings(), lambda desk: desk.revoke_key(key_id))
    invocation.screen.reply(revoked, lambda: f"Key {revoked.key_id} ({revoked.name}) is revoked.")
