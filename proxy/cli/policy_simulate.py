"""`tollhouse policy simulate`: what a policy would have refused of the requests that are in the ledger."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import RenderableType

from proxy.cli.desk import at_the_desk
from proxy.cli.invocation import HouseCommand, Invocation, pass_invocation
from proxy.cli.moments import PastMoment
from proxy.cli.screen import Screen, counted
from proxy.policy.load import load_policy
from proxy.simulation.report import Report, Verdict
from proxy.simulation.run import simulate as run


@click.command("simulate", cls=HouseCommand)
@click.option("--from", "since", type=PastMoment(), default="1d", metavar="WHEN", help="7d, 12h, or 2027-01-31; 1d.")
@click.option("--to", "until", type=PastMoment(), default="now", metavar="WHEN", help="The same; now.")
@click.option(
    "--policy",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The policy to try, a folder or a file; the configured one if not given.",
)
@click.option("--key", "key_id", metavar="ID", help="Only this key's requests.")
@click.option("--each", is_flag=True, help="List each refusal, not only the sums.")
@pass_invocation
def simulate(
    invocation: Invocation,
    *,
    since: dt.datetime,
    until: dt.datetime,
    folder: Path | None,
    key_id: str | None,
    each: bool,
) -> None:
    """Try a policy on recorded requests: who would have been refused, when and by which rule.

    The requests of the ledger come again as they came, and run as long as they ran. Nothing is changed or charged.

    tollhouse policy simulate --from 7d --policy policies-next
    """
    if since >= until:
        raise click.UsageError("--from must be before --to.")
    settings = invocation.settings()
    policy = load_policy(folder or Path(settings.policies))
    recorded = at_the_desk(settings, lambda desk: desk.recorded(since, until, key_id))
    found = run(policy, recorded.rows, recorded.callers, since=since, until=until)
    invocation.screen.reply(found, lambda: _shown(invocation.screen, found, each=each))


def _shown(screen: Screen, found: Report, *, each: bool) -> RenderableType:
    span = f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC"
    screen.remark(f"{span}, under revision {found.revision}:")
    screen.remark(f"{counted(found.requests, 'request')}, {found.let_in} let in, {found.refused} refused.")
    for remark in found.remarks:
        screen.remark(remark)
    if each:
        rows = [[*_when(one), one.key_id, one.tier, one.model, _rule(one)] for one in found.refusals]
        return screen.table(["TIME", "REQUEST", "KEY", "TIER", "MODEL", "RULE"], rows)
    return screen.table(["KEY", "TIER", "RULE", "REFUSED#", "FIRST"], _sums(found.refusals))


def _sums(refusals: Sequence[Verdict]) -> list[list[str]]:
    """How often each rule refused each key, and since when; the most refused first."""
    grouped: dict[tuple[str, str, str], list[Verdict]] = {}
    for one in refusals:
        grouped.setdefault((one.key_id, one.tier, _rule(one)), []).append(one)
    most = sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0]))
    return [[*who, str(len(of)), _when(of[0])[0]] for who, of in most]


def _when(one: Verdict) -> tuple[str, str]:
    return f"{one.at:%Y-%m-%d %H:%M:%S}", one.request_id


def _rule(one: Verdict) -> str:
    return one.rule or f"{', '.join(one.shadow)} (shadow)"
