"""What goes to the service manager's socket, datagram by datagram."""

import asyncio
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.jsonlog import JsonLog
from sidecar.notify import Notifier


class Manager:
    """The service manager's end. Mutable: `lives`; `naps`, how long was slept; `rested`, after the fifth."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address.replace("@", "\0", 1))
        self.lives = True
        self.naps: list[float] = []
        self.rested = asyncio.Event()

    def heard(self) -> list[str]:
        said: list[str] = []
        while True:
            try:
                said.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return said

    async def sleep(self, delay_s: float) -> None:
        self.naps.append(delay_s)
        if len(self.naps) == 3:
            self.lives = False
        if len(self.naps) == 5:
            self.rested.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@tollhouse-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_ready_reading_again_and_stopping_are_told(manager: Manager, address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address}, JsonLog(io.StringIO()), monotonic_ns=lambda: 7_999)
    notifier.ready("Serving m.")
    notifier.reread()
    notifier.rereading()
    notifier.reread()
    notifier.reread()
    notifier.stopping()
    assert manager.heard() == [
        "READY=1\nSTATUS=Serving m.",
        "RELOADING=1\nMONOTONIC_USEC=7",
        "READY=1",
        "STOPPING=1\nSTATUS=Ending what runs.",
    ]


@pytest.mark.parametrize("pid", [{}, {"WATCHDOG_PID": str(os.getpid())}])
async def test_the_watchdog_hears_three_beats_in_its_time_and_none_of_what_is_dead(
    manager: Manager, address: str, pid: dict[str, str]
) -> None:
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", **pid}
    notifier = Notifier(environment, JsonLog(io.StringIO()), sleep=manager.sleep)
    beating = asyncio.create_task(notifier.beat(lambda: manager.lives))
    await asyncio.sleep(0)
    assert manager.heard() == []
    notifier.ready("Serving m.")
    await manager.rested.wait()
    beating.cancel()
    assert manager.naps == [10.0] * 5
    assert manager.heard()[1:] == ["WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}]
)
async def test_without_a_watchdog_nothing_beats(environment: dict[str, str]) -> None:
    notifier = Notifier(environment, JsonLog(io.StringIO()))
    notifier.ready("Serving m.")
    await notifier.beat(lambda: True)


def test_without_a_manager_nothing_is_said() -> None:
    log = io.StringIO()
    Notifier({}, JsonLog(log)).ready("Serving m.")
    assert log.getvalue() == ""


def test_a_manager_that_is_gone_is_one_line_of_the_log(tmp_path: Path) -> None:
    log = io.StringIO()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}, JsonLog(log)).ready("Serving m.")
    line = json.loads(log.getvalue())
    assert (line["event"], line["message"]) == ("notify_failed", "READY=1")
    assert line["reason"] == os.strerror(2)
