"""`tollhouse up`: the whole house on one machine, from an empty folder to an answer.

The story is `up` itself. What must hold before is in `preflight`, what is made in `groundwork`, who runs in
`household`, the way from the first process to the first answer in `opening`.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import click
import msgspec

from proxy.cli import groundwork, preflight, sidecar_command
from proxy.cli.child import Child
from proxy.cli.desk import explained
from proxy.cli.exits import CommandError, Exit
from proxy.cli.household import Household
from proxy.cli.invocation import DEFAULT_CONFIG, Invocation, command, pass_invocation
from proxy.cli.opening import Opening
from proxy.cli.screen import Screen, counted
from proxy.cli.sidecar_command import SidecarConfig
from proxy.clock import SystemClock
from proxy.policy.load import load_policy
from proxy.policy.schema import Policy
from proxy.settings import Proxy
from sidecar import telemetry

FIRST_TIER: Final = "unlimited"


class Fetched(msgspec.Struct, frozen=True):
    """What `tollhouse-sidecar fetch --json` answers."""

    path: str


@command("up")
@sidecar_command.config_option
@click.option("-v", "--verbose", is_flag=True, help="Show the servers' logs here too.")
@pass_invocation
def up(invocation: Invocation, sidecar_config: Path, verbose: bool) -> int:
    """Start everything here: model, sidecar, proxy. Makes what is missing, and ends with Ctrl-C.

    The first start fetches the default model, creates the database and shows a first API key, once.
    """
    screen = invocation.screen
    settings, sidecar, policy = _configuration(invocation, sidecar_config)
    preflight.check_ready_to_start(settings, sidecar, sidecar_config)
    groundwork.make_private_folders(settings, sidecar.socket)
    with explained():
        screen.step("Database", groundwork.upgrade_database(settings))
        screen.step("Model", f"{sidecar.model.id}, in {_from_home(_fetched(invocation, sidecar_config))}")
        opening = Opening(screen, settings, sidecar, _first_tier(policy), SystemClock())
        children = _children(invocation, sidecar_config)
        return asyncio.run(_live(screen, settings, children, opening, verbose=verbose))


def _fetched(invocation: Invocation, sidecar_config: Path) -> str:
    """Where the model is; fetched first if it must be. Raises CommandError."""
    quiet = ["-q"] if invocation.quiet else []
    try:
        said = sidecar_command.ask_sidecar_command("fetch", "--config", str(sidecar_config), "--json", *quiet)
    except CommandError as exc:
        hint = f"{exc.hint} The model is set by model.source in {sidecar_config}."
        raise CommandError(exc.message, hint=hint, code=exc.code) from exc
    return msgspec.json.decode(said, type=Fetched).path


def _configuration(invocation: Invocation, sidecar_config: Path) -> tuple[Proxy, SidecarConfig, Policy]:
    """Both files and the policies, read and valid, written first where they are missing."""
    defaults = {
        path: f"conf/{path.name}"
        for path, default in (
            (invocation.config, DEFAULT_CONFIG),
            (sidecar_config, sidecar_command.DEFAULT_CONFIG),
        )
        # A file that was asked for by name and is not there is a mistake, not a wish for a new one.
        if path == default
    }
    written = groundwork.write_missing(defaults)
    settings = invocation.settings()
    telemetry.collector(os.environ)
    policies = Path(settings.policies)
    written += groundwork.write_missing(groundwork.missing_policies(policies))
    sidecar = sidecar_command.load_sidecar_config(sidecar_config, os.environ)
    policy = load_policy(policies)
    made = f"; new: {', '.join(path.name for path in written)}" if written else ""
    invocation.screen.step(
        "Config", f"{invocation.config}, {sidecar_config}, {policies}/ ({counted(len(policy.tiers), 'tier')}){made}"
    )
    return settings, sidecar, policy


def _first_tier(policy: Policy) -> str:
    """The first key's: on one's own machine nothing is in its way."""
    return FIRST_TIER if FIRST_TIER in policy.tiers else min(policy.tiers)


def _from_home(path: str) -> str:
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def _children(invocation: Invocation, sidecar_config: Path) -> tuple[Child, Child]:
    tollhouse = [sys.executable, "-P", "-m", "proxy", "serve", "--config", str(invocation.config)]
    sidecar = [str(sidecar_command.executable()), "serve", "--config", str(sidecar_config)]
    return Child("sidecar", sidecar, groundwork.LOGS / "sidecar.log"), Child(
        "proxy", tollhouse, groundwork.LOGS / "proxy.log"
    )


async def _live(
    screen: Screen, settings: Proxy, children: tuple[Child, Child], opening: Opening, *, verbose: bool
) -> Exit:
    household = Household(children, drain_s=settings.timeouts.drain_s, remark=screen.remark)
    echo = (lambda child, line: screen.remark(f"{child.name:<8} {line}")) if verbose else None
    return await household.live(lambda: opening.open_up(children[0]), echo)
