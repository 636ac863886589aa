"""`tollhouse state`: the server that runs here."""

from rich.console import RenderableType

from proxy.admin import table
from proxy.admin.records import Nothing, ServerState
from proxy.cli.desk import at_the_desk
from proxy.cli.exits import Exit
from proxy.cli.invocation import Invocation, command, pass_invocation
from proxy.cli.screen import Screen


@command("state")
@pass_invocation
def state(invocation: Invocation) -> int:
    """Show the running server; exit code 1 if it is not ready."""
    found = at_the_desk(invocation.settings(), lambda desk: desk.do(table.STATE, Nothing()))
    invocation.screen.reply(found, lambda: _shown(invocation.screen, found))
    return Exit.OK if found.ready else Exit.FAILED


def _shown(screen: Screen, found: ServerState) -> RenderableType:
    rows = [
        ["ready", "yes" if found.ready else f"no: {found.reason}"],
        ["version", found.version],
        ["process", str(found.pid)],
        ["address", f"{found.host}:{found.port}"],
        ["policy", found.policy_revision],
        *(["policy problem", problem] for problem in found.policy_problems),
        ["requests", str(found.requests_in_progress)],
        *(
            [f"upstream {upstream.name}", ", ".join(upstream.models) if upstream.ready else upstream.reason]
            for upstream in found.upstreams
        ),
    ]
    return screen.table(["FIELD", "VALUE"], rows)
