"""The `tollhouse` command: its table of commands, and the boundary where errors become words and an exit code.

A command's module is imported when it is called for, so that `--help` and `keys` do not wait for what `serve` needs.
"""

import errno
import importlib
from collections.abc import Sequence
from typing import Final

import click
from typing_extensions import override

from proxy.cli.exits import CommandError, Exit
from proxy.cli.invocation import CONFIG_VARIABLE, HouseGroup, Invocation
from proxy.cli.program import program
from sidecar.wire.errors import ApiError
from sidecar.yamlfile import ConfigInvalidError

_OWNER: Final = "Run the command as the user who owns it, or see its permissions."
# What to do about what the system refuses.
REMEDIES: Final = {
    errno.EACCES: _OWNER,
    errno.EPERM: _OWNER,
    errno.EROFS: "Run it in a folder that can be written to.",
    errno.ENOSPC: "Free some space on that disk.",
    errno.EDQUOT: "Free some space: this user's share of the disk is full.",
}
# Name: module under proxy.cli (which has a command of that name), and what it does. The order is a newcomer's.
COMMANDS: Final = {
    "up": ("up", "Start everything here: model, sidecar, proxy. Makes what is missing."),
    "serve": ("serve", "Run the proxy alone."),
    "console": ("console", "Make a key for the console in a browser, and show its address."),
    "keys": ("keys", "Create, list, change, rotate and revoke API keys."),
    "accounts": ("accounts", "Create, list and change the accounts that keys belong to."),
    "sign": ("sign", "Sign a request with a key that signs, for curl and others."),
    "usage": ("usage", "Show what each key used in a month."),
    "log": ("log", "List and export the requests, in numbers."),
    "audit": ("audit", "Show what was done to accounts and keys, and by whom."),
    "ledger": ("ledger", "Check the books."),
    "state": ("state", "Show the running server."),
    "policy": ("policy", "Check, compare and try policies."),
    "db": ("db", "Bring the database's schema up to date, and back it up."),
    "model": ("model", "Fetch and list the models of the catalogue."),
    "doctor": ("doctor", "Look for what is wrong with this installation."),
    "completion": ("completion", "Teach a shell to complete these commands."),
    "test": ("suite", "Run the checks and tests of a checkout."),
}


class Root(HouseGroup):
    """The commands of the table, imported when one of them is called."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"proxy.cli.{COMMANDS[cmd_name][0]}")
        found = getattr(module, cmd_name)
        if not isinstance(found, click.Command):
            raise TypeError(f"{module.__name__}.{cmd_name} is not a command")
        return found

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(
    "tollhouse",
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `tollhouse up`.",
)
@click.version_option(package_name="tollhouse", message="%(prog)s %(version)s")
def tollhouse() -> None:
    """An OpenAI-compatible endpoint for your own models, behind keys, limits and a ledger."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line to its end, and give its exit code."""
    invocation = Invocation()
    try:
        returned = tollhouse.main(list(arguments), prog_name="tollhouse", standalone_mode=False, obj=invocation)
    except click.ClickException as exc:
        # What is wrong may have ended the reading before that option came.
        invocation.as_json = invocation.as_json or "--json" in arguments
        return _refused(exc, invocation)
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except (ConfigInvalidError, CommandError, ApiError, OSError) as exc:
        return _explained(exc, invocation)
    return returned if isinstance(returned, int) else Exit.OK


def _explained(exc: ConfigInvalidError | CommandError | ApiError | OSError, invocation: Invocation) -> int:
    if isinstance(exc, ConfigInvalidError):
        invocation.screen.invalid(exc.problems, _config_hint(exc, invocation))
        return Exit.CONFIG_INVALID
    if isinstance(exc, OSError):
        # A file or an address that the system refuses; what is ours to explain was explained before it came here.
        place = f"{exc.filename}: " if exc.filename else ""
        error = CommandError(f"{place}{exc.strerror or exc}", hint=REMEDIES.get(exc.errno or 0, ""))
    else:
        error = CommandError(exc.message) if isinstance(exc, ApiError) else exc
    invocation.screen.failed(error)
    return error.code


def _refused(exc: click.ClickException, invocation: Invocation) -> int:
    if invocation.as_json and not isinstance(exc, click.exceptions.NoArgsIsHelpError):
        invocation.screen.failed(CommandError(exc.format_message(), code=Exit(exc.exit_code)))
    else:
        exc.show()
    return exc.exit_code


def _config_hint(exc: ConfigInvalidError, invocation: Invocation) -> str:
    if any(problem.path == str(invocation.config) and problem.line == 0 for problem in exc.problems):
        return (
            f"`{program()} up` writes a first configuration. For one that lies elsewhere: --config FILE, or "
            f"{CONFIG_VARIABLE}=FILE in the environment."
        )
    return ""
