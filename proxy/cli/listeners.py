"""Looking at the addresses of the house without using them: is a port free, does something answer on a socket."""

import enum
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final, NamedTuple

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


class Wrong(enum.Enum):
    """What is to be changed of an address that a listener cannot have: the host, the port, or who has it."""

    HOST = "host"
    PORT = "port"
    TAKEN = "taken"


class Obstacle(NamedTuple):
    """Why a listener cannot have an address."""

    reason: str
    wrong: Wrong


def why_not_bound(host: str, port: int) -> Obstacle | None:
    """Why a listener could not have this address now; None if it could. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        # As servers do: a connection in TIME_WAIT from an earlier start is no hindrance.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except socket.gaierror:
            return Obstacle(f"{host} is not the name or address of this machine", Wrong.HOST)
        except OSError as exc:
            obstacles = {
                errno.EADDRINUSE: Obstacle("another process listens there", Wrong.TAKEN),
                errno.EACCES: Obstacle("ports below 1024 are the administrator's", Wrong.PORT),
                errno.EADDRNOTAVAIL: Obstacle(f"{host} is not an address of this machine", Wrong.HOST),
            }
            return obstacles.get(exc.errno or 0) or Obstacle(exc.strerror or str(exc), Wrong.HOST)
    return None
