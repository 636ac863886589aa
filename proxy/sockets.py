"""Opening what the servers listen on. Binding comes first, so that an address in use is told before anything is loaded.

A Unix socket is 0600 in a 0700 folder; one that was left behind is removed only if nobody answers on it.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KNOCK_S: Final = 2.0
_REASONS: Final = {
    errno.EADDRINUSE: "another process listens there",
    errno.EACCES: "this user may not",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}


class ListenError(Exception):
    """An address cannot be listened on. The message says which and why."""


def bind_tcp(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises ListenError."""
    with _explained(f"{host}:{port}"):
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setblocking(False)
            made.bind(address)
        except OSError:
            made.close()
            raise
        return made


def listen(bound: socket.socket, backlog: int) -> None:
    """Raises ListenError. Not left to the loop: uvloop closes a socket that cannot listen, and says nothing."""
    name = bound.getsockname()
    with _explained(name if isinstance(name, str) else f"{name[0]}:{name[1]}"):
        bound.listen(backlog)


def url(host: str, port: int, *, tls: bool = False) -> str:
    """Where a client on this machine finds a listener."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - read, not bound
    scheme = "https" if tls else "http"
    return f"{scheme}://[{here}]:{port}" if ":" in here else f"{scheme}://{here}:{port}"


def bind_unix(path: Path) -> socket.socket:
    """A bound socket for this user alone, that does not listen yet. Raises ListenError."""
    with _explained(str(path)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode at birth: between a bind and a chmod somebody could connect.
        before = os.umask(0o177)
        try:
            made.setblocking(False)
            made.bind(os.fspath(path))
        except OSError:
            made.close()
            raise
        finally:
            os.umask(before)
        return made


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket lies there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(KNOCK_S)
        try:
            knock.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "in use")


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = _REASONS.get(exc.errno or 0, exc.strerror or str(exc))
        raise ListenError(f"Cannot listen on {where}: {reason}.") from exc


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
