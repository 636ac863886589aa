"""A sidecar alone, as real processes, and everything there is to see of it from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx2

MODEL = "tiny"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0


@dataclass
class Served:
    """A started sidecar; `log` is the file of its JSON lines, of the front and of its engine."""

    popen: subprocess.Popen[bytes]
    folder: Path
    log: Path

    @property
    def socket(self) -> str:
        return str(self.folder / "s.sock")

    @property
    def slots(self) -> Path:
        return self.folder / "s.slots"

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == name]

    def wait_for(self, name: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := self.events(name):
                return found[0]
            if self.popen.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {name!r}:\n{self.log.read_text()[-4000:]}")

    def session(self) -> aiohttp.ClientSession:
        unix = aiohttp.UnixConnector(self.socket, limit=0)
        return aiohttp.ClientSession("http://sidecar", connector=unix, timeout=aiohttp.ClientTimeout(total=60))

    def client(self) -> httpx2.Client:
        transport = httpx2.HTTPTransport(uds=self.socket)
        return httpx2.Client(transport=transport, base_url="http://sidecar", timeout=60)

    def state(self) -> dict[str, Any]:
        with self.client() as client:
            return dict(client.get("/internal/state").json())

    def metrics(self) -> dict[str, float]:
        """The page, by name with labels."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)


@contextmanager
def starter(model: Path, folder: Callable[[], Path]) -> Iterator[Callable[..., Served]]:
    """Starts sidecars of a model, each in a `folder` of its own, with given settings; all are ended at the end.

    What it gives takes `environ`, added to the environment, and `awaits`, the event to wait for.
    """
    started: list[Served] = []

    def start(environ: dict[str, str] | None = None, awaits: str = "ready", **settings: Any) -> Served:
        # A Unix socket's path holds 107 bytes, so the folder's is short.
        own = folder()
        config = {"model": {"id": MODEL, "source": str(model)}, "socket": str(own / "s.sock"), **settings}
        # JSON is YAML, and has no anchors.
        (own / "sidecar.yaml").write_text(json.dumps(config))
        log = own / "log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "serve", "--config", own / "sidecar.yaml"],
                stdout=out,
                stderr=out,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )
        started.append(Served(popen, own, log))
        started[-1].wait_for(awaits)
        return started[-1]

    try:
        yield start
    finally:
        for served in started:
            served.stop()
