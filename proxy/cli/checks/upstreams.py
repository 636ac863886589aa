"""The check of the upstreams: the sidecars that a running server knows are ready, or it will know the one here."""

from typing import Final

from proxy.admin import table
from proxy.admin.records import Nothing, ServerState
from proxy.cli import desk, preflight
from proxy.cli.checks.check import Case, Check, failed, ok, warning
from proxy.cli.exits import CommandError
from proxy.cli.loadbar import LOADING
from sidecar.wire.errors import ApiError

NAME: Final = "upstreams"


def check_upstreams(case: Case) -> Check:
    """The sidecars of a server that runs here are ready; one that will be started here is known to the proxy."""
    try:
        if desk.server_runs(case.settings):
            return judged(desk.at_the_desk(case.settings, lambda opened: opened.do(table.STATE, Nothing())))
        if case.sidecar is not None:
            preflight.check_upstream(case.settings, case.sidecar, case.sidecar_config)
    except CommandError as exc:
        return failed(NAME, exc.message, exc.hint)
    except ApiError as exc:
        return failed(NAME, str(exc), "The server's log may say why.")
    return ok(NAME, f"{', '.join(upstream.socket for upstream in case.settings.upstreams)}; no server runs here")


def judged(state: ServerState) -> Check:
    """What to say of what a running server sees."""
    away = [upstream for upstream in state.upstreams if not upstream.ready]
    told = ", ".join(f"{upstream.name} is {upstream.reason}" for upstream in away)
    if not away:
        return ok(NAME, f"{', '.join(upstream.name for upstream in state.upstreams)}: ready")
    if any(upstream.reason == LOADING for upstream in away):
        return warning(
            NAME, told, "A model is being loaded, which may take minutes; the sidecar's log tells how far it is."
        )
    hint = "Start its sidecar; if it runs, see its log, and whether `socket` in its file is this upstream's."
    if len(away) < len(state.upstreams):
        return warning(NAME, f"{told}; the others serve", hint)
    return failed(NAME, f"{told}: nobody is served", hint)
