"""A whole Tollhouse for a test: real processes, the real model, its own folder, and a way to look inside.

Nothing of Tollhouse is imported: the tests of others' clients run where it is not installed.
"""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai

from tests.fakes.tiers import UNLIMITED

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
SOCKET = "run/sidecar.sock"
START_TIMEOUT_S = 120.0


@dataclass
class Process:
    """A started command whose JSON log lines are kept in a file."""

    popen: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, event: str, timeout_s: float = START_TIMEOUT_S, **told: str) -> dict[str, Any]:
        """Its first line of this event that says what is told, too."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in self.events():
                if line["event"] == event and told.items() <= line.items():
                    return line
            if self.popen.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {event!r} from {self.popen.args!r}:\n{self.log.read_text()[-4000:]}")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 40.0) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout_s)


@dataclass
class House:
    """A folder with a configuration, and the processes started in it; `programs` is where those lie.

    `beside`: the house whose sidecar it uses, if it has none of its own.
    """

    folder: Path
    tiers: dict[str, dict[str, Any]]
    programs: Path = BIN
    beside: "House | None" = None
    sidecar: Process | None = None
    proxy: Process | None = None
    port: int = 0
    admin_port: int = 0
    starts: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    clients: list[openai.OpenAI] = field(default_factory=list)

    def write(
        self, engine: dict[str, Any] | None = None, embedding: dict[str, Any] | None = None, **proxy: Any
    ) -> None:
        (self.folder / "policies").mkdir(parents=True, exist_ok=True)
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        tiers = {name: UNLIMITED | rules for name, rules in self.tiers.items()}
        self.yaml("policies/default.yaml", {"version": 1, "tiers": tiers})
        self.yaml(
            "conf/sidecar.yaml",
            {"model": {"id": MODEL, "source": MODEL}, "embedding": embedding, "engine": engine or {}},
        )
        self.yaml(
            "conf/proxy.yaml",
            {
                "upstreams": [{"name": "local", "socket": str(self.socket)}],
                "listen": {"port": 0},
                "admin": {"port": 0},
                **proxy,
            },
        )

    def yaml(self, name: str, data: object) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        # JSON is YAML, and has no anchors.
        path.write_text(json.dumps(data))

    def start(self, *command: str) -> Process:
        self.starts += 1
        log = self.folder / f"{self.starts}-{command[0]}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [self.programs / command[0], *command[1:]],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return Process(popen, log)

    def start_sidecar(self) -> Process:
        self.sidecar = self.start("tollhouse-sidecar", "serve", "--config", "conf/sidecar.yaml")
        self.sidecar.wait_for("ready")
        return self.sidecar

    def start_proxy(self) -> Process:
        self.proxy = self.start("tollhouse", "serve")
        ready = self.proxy.wait_for("ready")
        self.port, self.admin_port = ready["port"], ready["admin_port"]
        return self.proxy

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        for process in (self.proxy, self.sidecar):
            if process is not None:
                process.stop()

    def command(self, *arguments: str, code: int = 0) -> Any:
        """Run `tollhouse --json …` and give its document."""
        done = subprocess.run(
            [self.programs / "tollhouse", "--json", *arguments],
            cwd=self.folder,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def key(self, tier: str) -> str:
        """A new key of a tier, in an account of its own."""
        name = f"{tier}-{len(self.keys)}"
        self.command("accounts", "create", name)
        made = self.command("keys", "create", "--account", name, "--tier", tier, "--name", name)
        self.keys[made["secret"]] = made["key_id"]
        return str(made["secret"])

    @property
    def socket(self) -> Path:
        """The sidecar's."""
        return (self.beside or self).folder / SOCKET

    def state(self) -> dict[str, Any]:
        """What the sidecar says of itself."""
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket))) as client:
            return dict(client.get("http://sidecar/internal/state").json())

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Its rows by request id, read beside the running server."""
        with sqlite3.connect(f"file:{self.folder}/data/tollhouse.db?mode=ro", uri=True) as database:
            database.row_factory = sqlite3.Row
            return {row["request_id"]: dict(row) for row in database.execute("SELECT * FROM ledger")}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=120, **options)
        self.clients.append(client)
        return client
