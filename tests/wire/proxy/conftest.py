"""Starts a whole proxy for a test, stops it after, and sees that the books are right."""

import asyncio
import contextlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy import app
from proxy.admin.client import AdminClient
from proxy.settings import Admin, Database, Limits, Listen, Proxy, Timeouts, Upstream
from proxy.store import migrate
from sidecar.jsonlog import JsonLog
from sidecar.wire.slots import SlotWriter
from tests.fakes.sidecar import FakeSidecar
from tests.wire.proxy.house import TIERS, WAIT_S, House, Wire


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the server runs on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the tables of this version."""
    path = tmp_path_factory.mktemp("db") / "empty.db"
    migrate.upgrade(Database(url=f"sqlite+aiosqlite:///{path}"))
    return path


Build = Callable[..., "contextlib.AbstractAsyncContextManager[House]"]


@pytest.fixture
def build(tmp_path: Path, migrated: Path) -> Build:
    """Start a proxy with its own settings; leaving it stops it and checks the books."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/default.yaml").write_text(json.dumps({"version": 1, "tiers": TIERS}))
    (tmp_path / "data").mkdir(mode=0o700)
    shutil.copyfile(migrated, tmp_path / "data/t.db")
    SlotWriter(tmp_path / "s.slots").close()

    @contextlib.asynccontextmanager
    async def started(
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        prepare: Callable[[FakeSidecar], None] | None = None,
        trusted_proxies: tuple[str, ...] = (),
        **more: Any,
    ) -> AsyncIterator[House]:
        settings = Proxy(
            upstreams=[Upstream(name="local", socket=str(tmp_path / "s.sock"))],
            listen=Listen(port=0, trusted_proxies=trusted_proxies),
            admin=Admin(port=0, socket=str(tmp_path / "a.sock")),
            database=Database(url=f"sqlite+aiosqlite:///{tmp_path / 'data/t.db'}", synchronous="NORMAL"),
            policies=str(tmp_path / "policies"),
            secret_file=str(tmp_path / "data/root.secret"),
            limits=limits or Limits(),
            timeouts=timeouts or Timeouts(drain_s=5.0),
            **more,
        )
        log, stop, sidecar = io.StringIO(), app.Stop(), FakeSidecar(tmp_path / "s.sock")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(sidecar.stop)
            if prepare is not None:
                prepare(sidecar)
            await sidecar.__aenter__()
            task = asyncio.create_task(app.live(settings, JsonLog(log), stop))
            stack.push_async_callback(_ended, task, stop)
            house = House(settings, sidecar, log, stop, task)
            stack.push_async_callback(_hung_up, house.wires)
            await house.until(lambda: house.lines("ready"))
            yield house
            if not stop.told.is_set():
                async with AdminClient(settings.admin.socket) as client:
                    assert await client.check_ledger() == []

    return started


async def _hung_up(wires: list[Wire]) -> None:
    for wire in wires:
        await wire.close()


async def _ended(task: asyncio.Task[None], stop: app.Stop) -> None:
    stop.tell()
    async with asyncio.timeout(WAIT_S):
        await task


@pytest.fixture
async def house(build: Build) -> AsyncIterator[House]:
    async with build() as running:
        yield running
