"""`tollhouse completion`: a script that teaches a shell the commands, their options and the values that are known.

The script is made from the commands themselves and asks nobody at the touch of a key: in a fresh checkout `./tollhouse`
would install first.
"""

from typing import Final

import click

from proxy.cli import grammar, shells
from proxy.cli.invocation import Invocation, command, pass_invocation

PROGRAM: Final = "tollhouse"


@command("completion")
@click.argument("shell", type=click.Choice(list(shells.SCRIPTS)))
@pass_invocation
@click.pass_context
def completion(context: click.Context, invocation: Invocation, shell: str) -> None:
    """Show the script that completes this program's commands in SHELL.

    bash: tollhouse completion bash > ~/.local/share/bash-completion/completions/tollhouse

    zsh: tollhouse completion zsh > a file _tollhouse in a folder of $fpath

    fish: tollhouse completion fish > ~/.config/fish/completions/tollhouse.fish
    """
    commands = list(grammar.walk(context.find_root().command, PROGRAM))
    script = shells.SCRIPTS[shell](commands, PROGRAM)
    invocation.screen.reply({"shell": shell, "script": script}, lambda: script.rstrip("\n"))
