"""What `tollhouse up` makes sure of before anything slow: each address it needs is free, and both sides know it.

Each refusal says what is in the way, where, and how to get it out of it.
"""

import os
from pathlib import Path

from proxy.cli import listeners
from proxy.cli.checks import disk
from proxy.cli.exits import CommandError
from proxy.cli.listeners import Wrong
from proxy.cli.program import program
from proxy.cli.sidecar_command import SidecarConfig
from proxy.settings import ENV_PREFIX, Database, Proxy


def check_ready_to_start(settings: Proxy, sidecar: SidecarConfig, sidecar_config: Path) -> None:
    """Raises CommandError for the first thing in the way."""
    check_upstream(settings, sidecar, sidecar_config)
    check_disk(settings.database)
    admin_socket, sidecar_socket = Path(settings.admin.socket), Path(sidecar.socket)
    check_socket(admin_socket)
    if listeners.socket_answers(admin_socket):
        raise CommandError(
            f"A Tollhouse runs here already: it answers on {admin_socket}.",
            hint=f"Use that one, or end it first. `{program()} keys`, `usage` and the others work beside it.",
        )
    check_socket(sidecar_socket)
    if listeners.socket_answers(sidecar_socket):
        raise CommandError(
            f"A sidecar runs already: it answers on {sidecar_socket}.",
            hint=f"End it first, or start only the proxy beside it: {program()} serve",
        )
    check_port(settings.listen.host, settings.listen.port, "LISTEN")
    check_port(settings.admin.host, settings.admin.port, "ADMIN")


def check_upstream(settings: Proxy, sidecar: SidecarConfig, sidecar_config: Path) -> None:
    """The proxy must know the sidecar that is about to start. Raises CommandError."""
    known = [upstream.socket for upstream in settings.upstreams]
    if sidecar.socket not in known:
        raise CommandError(
            f"The sidecar will listen on {sidecar.socket} ({sidecar_config}), but the proxy's upstreams are "
            f"{', '.join(known)}.",
            hint="Write the same path as `socket` in both files.",
        )


def check_disk(database: Database) -> None:
    """There is room for the database's first pages and for the logs. Raises CommandError."""
    folder, free = disk.fullest(database)
    if free < disk.LEAST_BYTES:
        raise CommandError(
            f"The disk of {folder.resolve()} is full: {free // 1_000_000} MB are free.",
            hint=f"Free {disk.LEAST_BYTES // 1_000_000} MB or more, for the database and the logs.",
        )


def check_socket(path: Path) -> None:
    """A socket can be made at `path`; one that was left over is no hindrance. Raises CommandError."""
    if len(os.fsencode(path)) > listeners.MAX_SOCKET_PATH_BYTES:
        raise CommandError(
            f"The path of the socket {path} is too long: a Unix socket's may have "
            f"{listeners.MAX_SOCKET_PATH_BYTES} bytes.",
            hint="Write a shorter or a relative path in the configuration.",
        )
    if os.path.lexists(path) and not listeners.is_socket(path):
        raise CommandError(
            f"A socket should be made at {path}, but something else lies there.",
            hint="Move it away, or write another path in the configuration.",
        )


def check_port(host: str, port: int, section: str) -> None:
    """A listener can be opened. Raises CommandError."""
    if obstacle := listeners.why_not_bound(host, port):
        # Of a port below 1024 the one that is usual instead: 8080, 8443.
        hints = {
            Wrong.HOST: f"To take another address: {ENV_PREFIX}{section}__HOST=127.0.0.1 {program()} up",
            Wrong.PORT: f"To take another port: {ENV_PREFIX}{section}__PORT={port + 8000} {program()} up",
            Wrong.TAKEN: f"`ss -ltnp 'sport = :{port}'` shows who does. To take another port: "
            f"{ENV_PREFIX}{section}__PORT={port + 10} {program()} up",
        }
        raise CommandError(f"Cannot listen on {host}:{port}: {obstacle.reason}.", hint=hints[obstacle.wrong])
