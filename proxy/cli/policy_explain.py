"""`tollhouse policy explain`: the rules that a key meets, where each comes from, and what they say now."""

from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import RenderableType

from proxy.admin.explaining import Explanation, WantedExplanation
from proxy.admission.explain import EffectiveRule, Said
from proxy.cli.desk import at_the_desk, server_runs
from proxy.cli.exits import CommandError, Exit
from proxy.cli.invocation import HouseCommand, Invocation, pass_invocation
from proxy.cli.screen import Screen
from proxy.policy.difference import words
from sidecar.wire.internal import Endpoint

# What a secret begins with; its public id comes next.
SECRETS: Final = ("sk-th_",)
ID_CHARACTERS: Final = 10


@click.command("explain", cls=HouseCommand)
@click.option("--key", required=True, metavar="KEY", help="A key's id, or its secret, of which only the id is used.")
@click.option("--model", metavar="MODEL", help="A served name; that of the request if not given.")
@click.option(
    "--request",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The JSON body of a request, to say what it would cost.",
)
@click.option(
    "--endpoint",
    type=click.Choice([endpoint.value for endpoint in Endpoint]),
    default=Endpoint.CHAT.value,
    help="Where the request would go; chats if not given.",
)
@pass_invocation
def explain(invocation: Invocation, *, key: str, model: str | None, request: Path | None, endpoint: str) -> None:
    """Show the rules that a key meets on a model, where each comes from, and what they say now.

    With a request also what it would cost, and which rule would refuse it. Nothing is taken. A running server is asked,
    since only it knows what is used of this minute.
    """
    settings = invocation.settings()
    body = None if request is None else _body(request)
    wanted = WantedExplanation(key=key_id(key), model=model, endpoint=endpoint, request=body)
    if not server_runs(settings):
        invocation.screen.remark("No server runs: of this minute nothing is used, and no model is known.")
    found = at_the_desk(settings, lambda desk: desk.explain(wanted))
    invocation.screen.reply(found, lambda: _shown(invocation.screen, found))


def key_id(key: str) -> str:
    """The public id in a key, or the id itself."""
    for prefix in SECRETS:
        if key.startswith(prefix):
            return key.removeprefix(prefix)[:ID_CHARACTERS]
    return key


def _body(file: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    except msgspec.MsgspecError as exc:
        raise CommandError(f"{file} is no JSON object: {exc}", code=Exit.USAGE) from exc


def _shown(screen: Screen, found: Explanation) -> RenderableType:
    said = found.explained
    on = f" on {said.model}" if said.model else ""
    screen.remark(f"Key {found.key_id} ({found.name}, {found.state}), tier {said.tier}{on}, revision {said.revision}.")
    if said.cost is not None:
        cost = said.cost
        how = "counted" if cost.exact else "at most, by its bytes"
        screen.remark(
            f"The request would reserve {cost.total} tokens: {cost.prompt_tokens} of prompt ({how}) and "
            f"{cost.choices} × {cost.output_tokens} of output."
        )
    for remark in said.remarks:
        screen.remark(remark)
    screen.remark(f"Now: {said.verdict}" + (f" by {said.refused_by}." if said.refused_by else "."))
    says = {limit.rule: limit for limit in said.says}
    rows = [[*_rule(rule), *_standing(says.get(rule.rule))] for rule in said.rules]
    return screen.table(["RULE", "VALUE", "FROM", "PLACE", "USED#", "ASKED#", "NOW", "RETRY#"], rows)


def _rule(rule: EffectiveRule) -> list[str]:
    return [rule.rule, words(rule.value), rule.source, rule.place]


def _standing(said: Said | None) -> list[str]:
    if said is None:
        return ["", "", "", ""]
    retry = "" if said.retry_after_s is None else f"{said.retry_after_s:.3f}s"
    if said.verdict == "refused" and not retry:
        retry = "never"
    return [str(said.used), str(said.requested), said.verdict, retry]
