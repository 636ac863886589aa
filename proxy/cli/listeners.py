"""Looking at the addresses of the house without using them: is a port free, does something answer on a socket."""

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from proxy.cli.exits import CommandError, Exit

KNOCK_TIMEOUT_S: Final = 2.0
# A Unix socket's address is a fixed array (unix(7)): 108 bytes with the final zero.
MAX_SOCKET_PATH_BYTES: Final = 107


def socket_answers(path: Path) -> bool:
    """Whether a process listens on a Unix socket. Raises CommandError if that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(KNOCK_TIMEOUT_S)
        try:
            knock.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as exc:
            raise CommandError(
                f"The socket {path} cannot be used: {exc.strerror or exc}.",
                hint="Run the command as the user who started the server, and see the path in the configuration.",
                code=Exit.NOT_REACHABLE,
            ) from exc
        return True


def is_socket(path: Path) -> bool:
    """Whether a Unix socket lies at `path`, live or left over."""
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def why_not_bound(host: str, port: int) -> str:
    """Why a listener could not have this address now; empty if it could. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        # As servers do: a connection in TIME_WAIT from an earlier start is no hindrance.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except socket.gaierror:
            return f"{host} is not the name or address of this machine"
        except OSError as exc:
            reasons = {
                errno.EADDRINUSE: "another process listens there",
                errno.EACCES: "ports below 1024 are the administrator's",
                errno.EADDRNOTAVAIL: f"{host} is not an address of this machine",
            }
            return reasons.get(exc.errno or 0, exc.strerror or str(exc))
    return ""
