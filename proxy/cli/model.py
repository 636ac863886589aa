"""`tollhouse model fetch|list`: the sidecar's catalogue, through the sidecar's own command."""

from pathlib import Path

import click

from proxy.cli import sidecar_command
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation


@click.group("model", cls=HouseGroup)
def model() -> None:
    """Fetch and list the models of the catalogue."""


@model.command("fetch")
@click.argument("name", required=False)
@sidecar_command.config_option
@pass_invocation
def fetch(invocation: Invocation, sidecar_config: Path, name: str | None) -> int:
    """Fetch the model NAME, or the configured ones, and convert them once into the cache."""
    quiet = ["-q"] if invocation.quiet else []
    return _run(invocation, "fetch", sidecar_config, [*quiet, name] if name else quiet)


@model.command("list")
@sidecar_command.config_option
@click.option("--verify", is_flag=True, help="Read each model of the cache whole, and compare it with its checksums.")
@pass_invocation
def list_(invocation: Invocation, sidecar_config: Path, verify: bool) -> int:
    """List the models of the catalogue, and which of them are in the cache."""
    return _run(invocation, "list", sidecar_config, ["--verify"] if verify else [])


def _run(invocation: Invocation, name: str, config: Path, arguments: list[str]) -> int:
    as_json = ["--json"] if invocation.as_json else []
    return sidecar_command.run_sidecar_command(name, "--config", str(config), *as_json, *arguments)
