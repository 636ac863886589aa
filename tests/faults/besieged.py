"""A house whose processes are killed under load: it starts them, kills them, and looks into their books."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from proxy.admin.client import AdminClient
from proxy.admin.records import NewAccount, NewKey
from proxy.store import audit
from sidecar.wire import slots
from tests.fakes.postgres import Postgres
from tests.fakes.tiers import UNLIMITED

BIN: Final = Path(sys.executable).parent
START_S: Final = 120.0
# So many tokens a key of the tier `small` may use, and so many requests of the tier `few` run at once.
SMALL: Final = 20_000
FEW: Final = 2
OPEN: Final = UNLIMITED | {"default_output_tokens": 16}
TIERS: Final = {
    "open": OPEN,
    "small": OPEN | {"monthly_tokens": SMALL},
    "few": OPEN | {"concurrency": FEW},
}
PROXY, SIDECAR, ENGINE, DATABASE = "proxy", "sidecar", "engine", "postgres"


@dataclass
class Besieged:
    """The processes and their folder. `sidecar_command` starts a sidecar on `run/sidecar.sock`.

    `timeouts` are the proxy's, `sidecar` is the whole of `conf/sidecar.yaml`.

    Mutable: the running processes, `port` (0 while no proxy is ready), `starts`, `ready_s` (how long each start of the
    proxy took), `_engine` (the tests' own connections), `_killed` (the engine that was killed last).
    """

    folder: Path
    sidecar_command: Sequence[str | Path]
    postgres: Postgres | None = None
    timeouts: dict[str, float] = field(default_factory=dict)
    sidecar: dict[str, Any] = field(default_factory=dict)
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    port: int = 0
    admin_port: int = 0
    starts: int = 0
    ready_s: list[float] = field(default_factory=list)
    url: str = ""
    _engine: AsyncEngine | None = None
    _killed: int = 0

    async def set_up(self) -> dict[str, str]:
        """Everything runs; a key of each tier."""
        for name in ("conf", "policies", "run"):
            (self.folder / name).mkdir()
        (self.folder / "data").mkdir(mode=0o700)
        (self.folder / "run").chmod(0o700)
        seen_url = f"sqlite+aiosqlite:///file:{self.folder}/data/t.db?mode=ro&uri=true"
        self.url = f"sqlite+aiosqlite:///{self.folder}/data/t.db"
        if self.postgres is not None:
            self.url = seen_url = self.postgres.url(await asyncio.to_thread(self.postgres.new_database))
        self._engine = create_async_engine(seen_url, poolclass=NullPool)
        self._write("policies/default.yaml", {"version": 1, "tiers": TIERS})
        self._write("conf/sidecar.yaml", self.sidecar)
        upstream = {"name": "local", "socket": "run/sidecar.sock"}
        self._write(
            "conf/proxy.yaml",
            {
                "upstreams": [upstream],
                "listen": {"port": 0},
                "admin": {"port": 0},
                "database": {"url": self.url},
                "timeouts": self.timeouts,
            },
        )
        assert await (await self._start("tollhouse", BIN / "tollhouse", "db", "upgrade")).wait() == 0, self.log()
        await self.start(SIDECAR)
        await self.start(PROXY)
        return {tier: await self._key(tier) for tier in TIERS}

    async def tear_down(self) -> None:
        for process in self.running.values():
            if process.returncode is None:
                process.terminate()
            await process.wait()
        if self._engine is not None:
            await self._engine.dispose()

    async def start(self, name: str) -> None:
        """Returns once it serves."""
        if name == DATABASE:
            assert self.postgres is not None
            await asyncio.to_thread(self.postgres.start)
        elif name in {SIDECAR, ENGINE}:
            # An engine comes back by itself.
            if name == SIDECAR:
                self.running[name] = await self._start(name, *self.sidecar_command)
            await until(self.serves, "the sidecar")
        else:
            began = time.monotonic()
            self.running[name] = await self._start(name, BIN / "tollhouse", "serve")
            ready = await until(self._ready_line, "the proxy")
            self.ready_s.append(time.monotonic() - began)
            self.admin_port, self.port = ready["admin_port"], ready["port"]
        if self.port:
            await until(self.is_ready, "a proxy that is ready")

    async def kill(self, name: str) -> None:
        """In the middle of whatever it does."""
        if name == DATABASE:
            assert self.postgres is not None
            await asyncio.to_thread(self.postgres.kill)
            return
        if name == ENGINE:
            self._killed = (await self.state())["engine_pid"]
            # Zero, or nobody, while one is being started: then there is none to kill.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._killed or 2**22, signal.SIGKILL)
            return
        if name == PROXY:
            self.port = 0
        self.running[name].send_signal(signal.SIGKILL)
        await self.running[name].wait()

    async def terminate(self, times: int = 1) -> int:
        """Tell the proxy to end, so many times; its exit code."""
        self.port = 0
        for _ in range(times):
            self.running[PROXY].send_signal(signal.SIGTERM)
            # Two signals that come before the first is heard are one.
            await until(self._draining, "a proxy that takes nothing new")
        return await self.running[PROXY].wait()

    async def state(self) -> dict[str, Any]:
        """What the sidecar says of itself; it is not ready if it says nothing."""
        connector = aiohttp.UnixConnector(str(self.folder / "run/sidecar.sock"))
        async with aiohttp.ClientSession("http://sidecar", connector=connector) as session:
            try:
                async with session.get("/internal/state") as response:
                    return dict(await response.json())
            except (aiohttp.ClientError, OSError):
                return {"ready": False, "engine_pid": 0}

    async def serves(self) -> bool:
        state = await self.state()
        # A front takes a moment to see that its engine is gone.
        return bool(state["ready"]) and state["engine_pid"] != self._killed

    async def is_ready(self) -> bool:
        """Whether the proxy says that it would answer a request."""
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.admin_port}") as session:
            try:
                async with session.get("/readyz") as response:
                    return response.status == 200
            except (aiohttp.ClientError, OSError):
                return False

    async def metrics(self) -> dict[str, float]:
        """The proxy's page, by name with labels."""
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{self.admin_port}") as session,
            session.get("/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def rows(self, table: str) -> list[dict[str, Any]]:
        assert self._engine is not None
        async with self._engine.connect() as connection:
            # The table is the test's own word.
            found = await connection.execute(text(f"SELECT * FROM {table}"))  # noqa: S608
            return [dict(row) for row in found.mappings()]

    async def broken_laws(self) -> list[str]:
        assert self._engine is not None
        async with self._engine.connect() as connection:
            return [
                problem for law in audit.LAWS for problem in law.broken_by((await connection.execute(law.query)).all())
            ]

    def generated(self) -> tuple[dict[str, tuple[int, int]], int]:
        """What the sidecar has counted, by request id: the truth. And how many records are running."""
        found: dict[str, tuple[int, int]] = {}
        running = 0
        # The model's and the encoder's.
        for file in (self.folder / "run").glob("*.slots"):
            records = file.read_bytes()[slots._HEADER_BYTES :]
            for identity, _, state, prompt, produced, _ in slots._RECORD.iter_unpack(records):
                if state != slots._FREE:
                    found[identity.rstrip(b"\0").decode()] = prompt, produced
                    running += state == slots._RUNNING
        return found, running

    def log(self) -> str:
        """The end of each log, for a test that failed."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))[-3:])

    async def _draining(self) -> bool:
        return bool(self.events("draining"))

    def events(self, name: str) -> list[dict[str, Any]]:
        logs = [path.read_text() for path in sorted(self.folder.glob("*-proxy.log"))]
        lines = (json.loads(line) for log in logs for line in log.splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == name]

    async def _start(self, name: str, *command: str | Path) -> asyncio.subprocess.Process:
        self.starts += 1
        with self._log_of(name).open("wb") as out:
            return await asyncio.create_subprocess_exec(
                *command,
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )

    def _log_of(self, name: str) -> Path:
        return self.folder / f"{self.starts:03}-{name}.log"

    async def _ready_line(self) -> dict[str, Any] | None:
        assert self.running[PROXY].returncode is None, self.log()
        lines = [json.loads(line) for line in self._log_of(PROXY).read_text().splitlines() if line.startswith("{")]
        return next((line for line in lines if line["event"] == "ready"), None)

    async def _key(self, tier: str) -> str:
        async with AdminClient(str(self.folder / "run/admin.sock")) as client:
            await client.create_account(NewAccount(tier))
            return (await client.create_key(NewKey(account=tier, tier=tier, name=tier))).secret

    def _write(self, name: str, data: object) -> None:
        # JSON is YAML, and has no anchors.
        (self.folder / name).write_text(json.dumps(data))


async def until(what: Callable[[], Any], words: str, timeout_s: float = START_S) -> Any:
    """What `what` gives in the end, once that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := await what():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"timed out: {words}")
