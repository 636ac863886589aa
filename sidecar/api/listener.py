"""The Unix socket: made so that only this user can reach it, and each connection asked whose it is (GUARDS, F14)."""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from typing_extensions import override

from sidecar.jsonlog import JsonLog

BACKLOG: Final = 512
# Linux, unix(7): sun_path holds 108 bytes with the closing zero.
MAX_PATH_BYTES: Final = 107
_CONNECT_S: Final = 2.0
# Linux, socket(7), SO_PEERCRED: struct ucred of pid, uid, gid.
_CREDENTIALS: Final = struct.Struct("3i")


class SocketUnusableError(Exception):
    """The socket cannot be opened; the message says why and what to do."""


def open_socket(path: Path, log: JsonLog) -> socket.socket:
    """Make the folder (0700) and the socket (0600), and listen. Blocks. Raises SocketUnusableError."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise SocketUnusableError(f"{path}: a socket's path may have {MAX_PATH_BYTES} bytes; choose a shorter one")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(path.parent, log)
        _remove_stale(path)
        return _listen(path)
    except OSError as exc:
        raise SocketUnusableError(f"{path}: {exc.strerror}") from exc


def _check_folder(folder: Path, log: JsonLog) -> None:
    mode = folder.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SocketUnusableError(f"{folder}: others may write here and replace the socket; run: chmod 700 {folder}")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("socket_folder_open", path=str(folder), hint="others may look into this folder; chmod it to 700")


def _remove_stale(path: Path) -> None:
    """Remove what an earlier sidecar left, and only that: a socket nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketUnusableError(f"{path}: something that is not a socket is in its place")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SocketUnusableError(f"{path}: another sidecar is listening here; stop it or set another `socket`")


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the file takes its mode from the socket: it is never open to others, not even for a moment.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.setblocking(False)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def close_socket(listening: socket.socket, path: Path) -> None:
    """Stop listening and remove the file, if it still is this socket's."""
    listening.close()
    with contextlib.suppress(OSError):
        path.unlink()


def peer_uid(connection: Any) -> int:
    """Whose process is at the other end of a Unix socket."""
    raw: bytes = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


class Doorkeeper(asyncio.Protocol):
    """Looks at who connects, then hands the connection to the HTTP server; strangers are sent away unheard."""

    def __init__(self, server: web.Server, allowed: frozenset[int], log: JsonLog) -> None:
        self._server = server
        self._allowed = allowed
        self._log = log

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked with isinstance: uvloop's transports are none of asyncio's classes.
        transport = cast("asyncio.Transport", transport)
        if peer_uid(transport.get_extra_info("socket")) not in self._allowed:
            self._log.warning("peer_refused", reason="another user connected to the socket")
            transport.abort()
            return
        protocol = self._server()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class GuardedSite(web.BaseSite):
    """A site on a listening Unix socket, with a doorkeeper."""

    __slots__ = ("_allowed", "_log", "_path", "_sock")

    def __init__(
        self, runner: web.AppRunner, sock: socket.socket, path: Path, allowed: frozenset[int], log: JsonLog
    ) -> None:
        super().__init__(runner)
        self._sock = sock
        self._path = path
        self._allowed = allowed
        self._log = log

    @property
    @override
    def name(self) -> str:
        return f"http://unix:{self._path}:"

    @override
    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("set up the runner before its sites")
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Doorkeeper(server, self._allowed, self._log), sock=self._sock, backlog=BACKLOG
        )
