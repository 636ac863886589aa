"""Both processes as systemd starts them: what they tell the socket of their service manager, and when."""

import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.house import House

WATCHDOG_S = 0.6
# No memory that can be written becomes code, from here on (PR_SET_MDWE of linux/prctl.h; older kernels than 6.3 do not
# know it, and refuse).
DENIED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Manager:
    """The service manager's end: what it hears is kept, since only ten datagrams wait to be read."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while said := self._socket.recv(4096):
            self._heard.put(said.decode())

    def hear(self) -> str:
        return self._heard.get(timeout=60)

    def hear_until(self, start: str) -> list[str]:
        """The datagrams up to the first that begins so, which is the last."""
        heard = [self.hear()]
        while not heard[-1].startswith(start):
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", self._socket.getsockname())
        self._reader.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    yield manager
    manager.close()


def test_systemd_is_told_by_both_processes_that_they_are_ready_alive_and_ending(
    build_house: Callable[..., House], manager: Manager
) -> None:
    house = build_house()
    sidecar = house.start_sidecar()
    assert manager.hear_until("READY=1")[-1] == "READY=1\nSTATUS=Serving smollm2-135m-instruct."
    assert manager.hear_until("WATCHDOG=1")
    assert sidecar.stop() == 0
    assert manager.hear_until("STOPPING=1")

    # As the unit has it: MemoryDenyWriteExecute=yes.
    (house.folder / "denied.py").write_text(DENIED)
    house.proxy = proxy = house.start("python", "denied.py", str(house.programs / "tollhouse"), "serve")
    house.port = proxy.wait_for("ready")["port"]
    assert manager.hear_until("READY=1")[-1] == f"READY=1\nSTATUS=Serving 127.0.0.1:{house.port}."
    for _ in range(3):
        assert manager.hear() == "WATCHDOG=1"
    proxy.popen.send_signal(signal.SIGHUP)
    reloading = manager.hear_until("RELOADING=1")[-1]
    assert int(reloading.partition("\nMONOTONIC_USEC=")[2]) > 0
    assert manager.hear_until("READY=1")[-1] == "READY=1"
    assert proxy.stop() == 0
    assert manager.hear_until("STOPPING=1")
