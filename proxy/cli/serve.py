"""`tollhouse serve`: the proxy alone, as a service runs it. Its log goes to stderr, one JSON object a line."""

import asyncio

import uvloop

from proxy import app
from proxy.cli.desk import explained
from proxy.cli.invocation import Invocation, command, pass_invocation
from sidecar.jsonlog import capture_stdlib, stderr_log


@command("serve")
@pass_invocation
def serve(invocation: Invocation) -> None:
    """Run the proxy alone; ends with SIGTERM or Ctrl-C, after the running answers."""
    settings = invocation.settings()
    log = stderr_log(settings.log_level)
    capture_stdlib(log)
    with explained(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.serve(settings, log))
