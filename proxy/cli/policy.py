"""`tollhouse policy check`: everything that is wrong with the policy files, with its place."""

from pathlib import Path

import click
import msgspec
from rich.console import RenderableType

from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.screen import Screen, counted
from proxy.policy.load import load_policy
from proxy.policy.schema import Policy
from sidecar.yamlfile import Problem


class PolicyReport(msgspec.Struct, frozen=True):
    """What `policy check` answers when all is well; otherwise `problems` is all there is."""

    problems: list[Problem]
    revision: str
    tiers: list[str]


@click.group("policy", cls=HouseGroup)
def policy() -> None:
    """Check the policy files."""


@policy.command("check")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@pass_invocation
def check(invocation: Invocation, folder: Path | None) -> None:
    """Read the policy files of FOLDER, or of the configured one, as the server would, and say all that is wrong."""
    found = load_policy(folder or Path(invocation.settings().policies))
    report = PolicyReport([], found.revision, sorted(found.tiers))
    invocation.screen.reply(report, lambda: _summary(invocation.screen, found))


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
