"""`tollhouse policy check|schema|diff`: everything that can be said of policy files without a server or a database.

What needs one of these has a module of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import RenderableType

from proxy.cli.exits import Exit
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.policy_explain import explain
from proxy.cli.policy_simulate import simulate
from proxy.cli.screen import Screen, counted
from proxy.policy import json_schema
from proxy.policy.difference import Change, differences, words
from proxy.policy.load import load_policy
from proxy.policy.schema import Policy
from sidecar.yamlfile import Problem

PLACE = click.Path(path_type=Path)


class PolicyReport(msgspec.Struct, frozen=True):
    """What `policy check` answers when all is well; otherwise `problems` is all there is."""

    problems: list[Problem]
    revision: str
    tiers: list[str]


class Difference(msgspec.Struct, frozen=True):
    """What `policy diff` answers: the two revisions, and what differs."""

    old: str
    new: str
    changes: list[Change]


@click.group("policy", cls=HouseGroup)
def policy() -> None:
    """Check, compare and try policies."""


policy.add_command(explain)
policy.add_command(simulate)


@policy.command("check")
@click.argument("folder", required=False, type=PLACE)
@pass_invocation
def check(invocation: Invocation, folder: Path | None) -> None:
    """Read the policy files of FOLDER, or of the configured one, as the server would, and say all that is wrong.

    FOLDER may be a single file: then nothing beside it is read.
    """
    found = load_policy(folder or Path(invocation.settings().policies))
    report = PolicyReport([], found.revision, sorted(found.tiers))
    invocation.screen.reply(report, lambda: _summary(invocation.screen, found))


@policy.command("schema")
@pass_invocation
def schema(invocation: Invocation) -> None:
    """Show the JSON Schema of a policy file, for editors that complete and check it.

    The folder of the default policies has it as policy.schema.json; a file names it in its first line:

    # yaml-language-server: $schema=policy.schema.json
    """
    invocation.screen.reply(json_schema.schema(), lambda: json_schema.text().rstrip("\n"))


@policy.command("diff")
@click.argument("old", type=PLACE)
@click.argument("new", type=PLACE)
@pass_invocation
def diff(invocation: Invocation, old: Path, new: Path) -> int:
    """Say what differs between the policies of OLD and NEW, folders or files. The exit code is 1 if anything does."""
    before, after = load_policy(old), load_policy(new)
    found = Difference(before.revision, after.revision, list(differences(before, after)))
    invocation.screen.reply(found, lambda: _changes(invocation.screen, found.changes))
    return Exit.FAILED if found.changes else Exit.OK


def _changes(screen: Screen, changes: Sequence[Change]) -> RenderableType:
    if not changes:
        screen.remark("The policies say the same.")
        return ""
    rows = [[change.tier, *_words(change)] for change in changes]
    return screen.table(["TIER", "RULE", "OLD", "NEW"], rows)


def _words(change: Change) -> tuple[str, str, str]:
    if not change.rule:
        return ("(the tier)", "", "added") if change.old is None else ("(the tier)", "removed", "")
    return change.rule, words(change.old), words(change.new)


def _summary(screen: Screen, policy: Policy) -> RenderableType:
    screen.remark(f"The policy is valid: {counted(len(policy.tiers), 'tier')}, revision {policy.revision}.")
    rows = [
        [
            tier.name,
            *map(
                _limit,
                (
                    tier.requests_per_minute,
                    tier.tokens_per_minute,
                    tier.concurrency,
                    tier.monthly_requests,
                    tier.monthly_tokens,
                    tier.max_output_tokens,
                ),
            ),
            ", ".join(sorted(tier.models)),
        ]
        for tier in policy.tiers.values()
    ]
    return screen.table(
        ["TIER", "REQ/MIN#", "TOK/MIN#", "AT ONCE#", "REQ/MONTH#", "TOK/MONTH#", "MAX OUTPUT#", "MODELS"], rows
    )


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else f"{value:,}"
