"""`tollhouse doctor`: looks for what is wrong with an installation and a house, and says what to do about it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
from rich.console import RenderableType
from rich.text import Text

from proxy.cli.checks import certificate, cpu, disk, gpu, house, machine, model, stores, traces, upstreams
from proxy.cli.checks.check import Case, Check, Status, failed, ok, warning
from proxy.cli.exits import Exit
from proxy.cli.invocation import Invocation, command, pass_invocation
from proxy.cli.screen import DONE, counted
from proxy.cli.sidecar_command import DEFAULT_CONFIG, SidecarConfig, config_option, load_sidecar_config
from proxy.store import address
from proxy.store.failure import StorageError
from sidecar.yamlfile import ConfigInvalidError

CONFIG: Final = "config"
# In the order in which one thing rests on another.
OF_MACHINE: Final[dict[str, Callable[[], Check]]] = {
    "python": machine.check_python,
    "packages": machine.check_packages,
    "sqlite": machine.check_sqlite,
    "cpu": cpu.check_cpu,
    "gpu": gpu.check_gpu,
    "memory": machine.check_memory,
    "traces": traces.check_traces,
}
OF_HOUSE: Final[dict[str, Callable[[Case], Check]]] = {
    "disk": disk.check_disk,
    "policy": house.check_policy,
    "permissions": house.check_permissions,
    "ports": house.check_ports,
    "tls": certificate.check_certificate,
    "files": house.check_files,
    "clock": stores.check_clock,
    "model": model.check_model,
    "device": model.check_device,
    "precision": model.check_precision,
    "room": model.check_room,
    "upstreams": upstreams.check_upstreams,
    "valkey": stores.check_valkey,
    "database": house.check_database,
    "secret": house.check_secret,
    "ledger": house.check_ledger,
}
NAMES: Final = (*OF_MACHINE, CONFIG, *OF_HOUSE)
MARKS: Final = {Status.OK: (DONE, "green"), Status.WARNING: ("!", "bold yellow"), Status.FAILED: ("✗", "bold red")}


@command("doctor")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="One check by its name; repeatable.")
@config_option
@pass_invocation
def doctor(invocation: Invocation, only: tuple[str, ...], sidecar_config: Path) -> int:
    """Look for what is wrong with this installation and this house, and say what to do about it.

    The exit code is 1 if a check failed, 3 if the configuration did; warnings are no failure.
    """
    found = list(_looked(invocation, sidecar_config, only or NAMES))
    invocation.screen.reply({"checks": found}, lambda: _shown(found))
    wrong = {check.name for check in found if check.status is Status.FAILED}
    if CONFIG in wrong:
        return Exit.CONFIG_INVALID
    return Exit.FAILED if wrong else Exit.OK


def _looked(invocation: Invocation, sidecar_config: Path, names: tuple[str, ...]) -> Iterator[Check]:
    for name, look in OF_MACHINE.items():
        if name in names:
            yield look()
    if not {CONFIG, *OF_HOUSE} & set(names):
        return
    case, config = _case(invocation, sidecar_config)
    if CONFIG in names or case is None:
        yield config
    if case is not None:
        for name, examine in OF_HOUSE.items():
            if name in names:
                yield examine(case)


def _case(invocation: Invocation, sidecar_config: Path) -> tuple[Case | None, Check]:
    """What there is to examine, and what is to be said of the configuration itself."""
    try:
        settings = invocation.settings()
        address.url_of(settings.database)
    except ConfigInvalidError as exc:
        return None, _invalid(exc)
    except StorageError as exc:
        return None, failed(CONFIG, str(exc), f"See database.url in {invocation.config}.")
    sidecar: SidecarConfig | None = None
    check = ok(CONFIG, str(invocation.config))
    if sidecar_config == DEFAULT_CONFIG and not DEFAULT_CONFIG.exists():
        hint = "Fine if sidecars run elsewhere. If its file lies elsewhere: --sidecar-config FILE."
        check = warning(CONFIG, f"{invocation.config}; no {DEFAULT_CONFIG}", hint)
    else:
        try:
            sidecar = load_sidecar_config(sidecar_config, os.environ)
            check = ok(CONFIG, f"{invocation.config}, {sidecar_config}")
        except ConfigInvalidError as exc:
            check = _invalid(exc)
    return Case(invocation.config, settings, sidecar_config, sidecar), check


def _invalid(exc: ConfigInvalidError) -> Check:
    return failed(CONFIG, "\n".join(map(str, exc.problems)), "Repair what is named; conf/ in a checkout has examples.")


def _shown(found: list[Check]) -> RenderableType:
    width = max(len(check.name) for check in found)
    shown = Text()
    for check in found:
        mark, style = MARKS[check.status]
        shown.append(f"{mark} ", style)
        message = check.message.replace("\n", f"\n  {'':<{width}}  ")
        shown.append(f"{check.name:<{width}}  {message}\n")
        if check.hint:
            shown.append(f"  {'':<{width}}  {check.hint}\n", "dim")
    wrong = [check.status for check in found if check.status is not Status.OK]
    summary = ", ".join(
        counted(wrong.count(status), noun)
        for status, noun in ((Status.FAILED, "failure"), (Status.WARNING, "warning"))
        if status in wrong
    )
    shown.append(f"\n{summary or 'All is well'}.", "bold")
    return shown
