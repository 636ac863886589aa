"""Starts a whole proxy for a test, stops it after, and sees that the books are right."""

import asyncio
import contextlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from proxy import app, door
from proxy.admin.client import AdminClient
from proxy.settings import Admin, Database, Limits, Listen, Proxy, Timeouts, Tls, Upstream
from sidecar.jsonlog import JsonLog
from sidecar.notify import Notifier
from sidecar.wire.slots import SlotWriter
from tests.fakes.sidecar import FakeSidecar
from tests.wire.proxy.house import TIERS, WAIT_S, House, Wire


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the server runs on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Database:
    """Where the house keeps its books: on SQLite, but for tests that are parametrised with `on_both`."""
    if getattr(request, "param", "sqlite") == "postgres":
        found: Database = request.getfixturevalue("on_postgres")
        return found
    (tmp_path / "data").mkdir(mode=0o700)
    shutil.copyfile(sqlite_template, tmp_path / "data/t.db")
    return Database(url=f"sqlite+aiosqlite:///{tmp_path / 'data/t.db'}", synchronous="NORMAL", busy_timeout_s=0.5)


# For a module's `pytestmark`: its tests run on both databases.
on_both = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
Build = Callable[..., "contextlib.AbstractAsyncContextManager[House]"]


@pytest.fixture
def build(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Build:
    """Start a proxy with its own settings; leaving it stops it and checks the books.

    `at` tells those apart that share a database.
    """
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/default.yaml").write_text(json.dumps({"version": 1, "tiers": TIERS}))
    (tmp_path / "data").mkdir(mode=0o700, exist_ok=True)
    for at in ("", "2"):
        SlotWriter(tmp_path / f"s{at}.slots").close()
    server = None if database.url.startswith("sqlite") else request.getfixturevalue("postgres")

    @contextlib.asynccontextmanager
    async def started(
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        prepare: Callable[[FakeSidecar], None] | None = None,
        *,
        trusted_proxies: tuple[str, ...] = (),
        tls: Tls | None = None,
        at: str = "",
        admin: Admin | None = None,
        **more: Any,
    ) -> AsyncIterator[House]:
        settings = Proxy(
            upstreams=[Upstream(name=f"local{at}", socket=str(tmp_path / f"s{at}.sock"))],
            listen=Listen(port=0, tls=tls, trusted_proxies=trusted_proxies),
            admin=msgspec.structs.replace(admin or Admin(), port=0, socket=str(tmp_path / f"a{at}.sock")),
            database=database,
            policies=str(tmp_path / "policies"),
            secret_file=str(tmp_path / "data/root.secret"),
            limits=limits or Limits(),
            timeouts=timeouts or Timeouts(drain_s=5.0, state_s=5.0),
            **more,
        )
        log, stop, sidecar = io.StringIO(), app.Stop(), FakeSidecar(tmp_path / f"s{at}.sock")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(sidecar.stop)
            if prepare is not None:
                prepare(sidecar)
            await sidecar.__aenter__()
            task = asyncio.create_task(app.live(settings, JsonLog(log), stop, Notifier({}, JsonLog(log))))
            stack.push_async_callback(_ended, task, stop)
            house = House(settings, sidecar, log, stop, task, server)
            stack.push_async_callback(_hung_up, house.wires)
            await house.until(lambda: house.lines("ready"))
            yield house
            if not stop.told.is_set():
                async with AdminClient(settings.admin.socket) as client:
                    assert await client.check_ledger() == []

    return started


@pytest.fixture
def patient_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a seat for so long that he is refused."""
    monkeypatch.setattr(door, "WAIT_S", 60.0)


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
