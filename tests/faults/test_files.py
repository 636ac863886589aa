"""A process that may open few files, and a flood of connections: it says so, goes on, and is heard by its operator."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.connections import FILE_RESERVE, FILES_EACH
from tests.fakes.waiting import until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILES = 192
FIT = (FILES - FILE_RESERVE) // FILES_EACH
FLOOD = 300


class Served:
    """A proxy without a sidecar."""

    def __init__(self, folder: Path) -> None:
        (folder / "policies").symlink_to(ROOT / "policies")
        (folder / "proxy.yaml").write_text(
            json.dumps({"upstreams": [{"name": "a", "socket": "s.sock"}], "listen": {"port": 0}, "admin": {"port": 0}})
        )
        command = [str(BIN / "tollhouse"), "--config", "proxy.yaml"]
        subprocess.run([*command, "db", "upgrade"], cwd=folder, check=True, capture_output=True)
        self._log = folder / "log"
        with self._log.open("wb") as out:
            limited = ["prlimit", f"--nofile={FILES}", *command, "serve"]
            self.popen = subprocess.Popen(limited, cwd=folder, stdout=out, stderr=out)
        self.ready = until(lambda: self.events("ready"))[0]

    def events(self, name: str) -> list[dict[str, Any]]:
        assert self.popen.poll() is None, self._log.read_text()
        lines = (json.loads(line) for line in self._log.read_text().splitlines())
        return [line for line in lines if line["event"] == name]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ready["port"]), timeout=10)

    def get(self, path: str, *, admin: bool = False) -> httpx2.Response:
        return httpx2.get(f"http://127.0.0.1:{self.ready['admin_port' if admin else 'port']}{path}", timeout=10)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    started = Served(tmp_path)
    yield started
    started.popen.send_signal(signal.SIGTERM)
    assert started.popen.wait(40) == 0


def test_w6_a_flood_takes_no_file_that_others_need(served: Served) -> None:
    (warned,) = served.events("few_files")
    assert warned["limit"] == FIT
    flood = [served.connect() for _ in range(FLOOD)]
    refused = sum(one.recv(100).startswith(b"HTTP/1.1 503") for one in flood[FIT:])
    assert refused == FLOOD - FIT
    # Those that have a place hold it; the operator is heard all the same.
    assert served.get("/livez", admin=True).status_code == 200
    assert (
        f'tollhouse_proxy_connections_refused_total{{reason="connections"}} {FLOOD - FIT}.0'
        in served.get("/metrics", admin=True).text
    )
    for one in flood:
        one.close()
    until(lambda: served.get("/v1/models").status_code == 401)
    assert {line["reason"] for line in served.events("connections_refused")} <= {"connections", "address"}
    assert served.events("request_failed") == []
