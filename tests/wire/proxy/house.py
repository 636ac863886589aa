"""A running proxy on real sockets with a fake sidecar behind it, and a client that speaks in bytes."""

import asyncio
import contextlib
import io
import json
import sqlite3
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy import app
from proxy.admin.client import AdminClient
from proxy.admin.records import NewAccount, NewKey
from proxy.settings import Proxy
from tests.fakes.postgres import Postgres
from tests.fakes.sidecar import MODEL, FakeSidecar
from tests.fakes.tiers import UNLIMITED

OPEN = UNLIMITED | {"default_output_tokens": 16, "priority": 3}
TIERS = {
    "open": OPEN,
    "one": OPEN | {"requests_per_minute": 1},
    "other": OPEN | {"models": ["org/other"]},
    "storing": OPEN | {"response_retention_days": 30},
    "parrot": OPEN | {"equal_prompts_per_minute": 2, "addresses_per_hour": 2},
    "few": OPEN | {"monthly_tokens": 100},
    "narrow": OPEN | {"concurrency": 40},
    "signed": OPEN | {"replay": "signed"},
    "keeping": OPEN | {"idempotency_bodies": True},
    "duplicate": OPEN | {"replay": "duplicate"},
    "under": OPEN | {"priority": 0},
    "waiting": OPEN | {"concurrency": 1, "max_waiting": 2, "max_wait_s": 30},
    "wary": OPEN | {"concurrency": 1, "max_waiting": 2, "max_wait_s": 0.05},
    "unlike": OPEN | {"requests_per_minute": 50, "per_model": {"org/tiny": {"requests_per_minute": 1}}},
    "upto": OPEN | {"requests_per_minute": 50, "tokens_per_minute": 90, "max_output_tokens": 100},
    "upper": OPEN | {"priority": 99},
}
WAIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer in parts. `whole`: it had its proper end."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class Wire:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(WAIT_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def chunk(self) -> bytes | None:
        """One chunk of a chunked body; empty at its proper end, None if the connection ends first."""
        async with asyncio.timeout(WAIT_S):
            try:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(size + 2)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
        return data[:-2]

    async def answer(self, *, bodiless: bool = False) -> Answer:
        status, headers = await self.head()
        if bodiless:
            return Answer(status, headers, b"", whole=True)
        if headers.get("transfer-encoding") != "chunked":
            async with asyncio.timeout(WAIT_S):
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return Answer(status, headers, body, whole=True)
        pieces: list[bytes] = []
        while chunk := await self.chunk():
            pieces.append(chunk)
        return Answer(status, headers, b"".join(pieces), whole=chunk == b"")

    async def answer_rest(self) -> bytes:
        """What is left of a chunked body, whether it has its proper end or not."""
        pieces: list[bytes] = []
        while chunk := await self.chunk():
            pieces.append(chunk)
        return b"".join(pieces)

    async def closed(self) -> bool:
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class House:
    """A running proxy and what is around it."""

    settings: Proxy
    sidecar: FakeSidecar
    log: io.StringIO
    stop: app.Stop
    task: asyncio.Task[None]
    postgres: Postgres | None = None
    wires: list[Wire] = field(default_factory=list)

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in found if line["event"] == event]

    async def until(self, what: Callable[[], Any]) -> Any:
        """Wait until something is there. The tasks that make it are in this loop: yielding to them is enough."""
        async with asyncio.timeout(WAIT_S):
            while not (found := what()):
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.005)
            return found

    async def line(self, event: str = "request", count: int = 1) -> dict[str, Any]:
        """The last of so many lines of an event."""
        found: dict[str, Any] = (await self.until(lambda: (seen := self.lines(event))[count - 1 :] and seen))[-1]
        return found

    @property
    def ready(self) -> dict[str, Any]:
        return self.lines("ready")[0]

    async def connect(self, *, admin: bool = False, secure: ssl.SSLContext | None = None) -> Wire:
        port = self.ready["admin_port" if admin else "port"]
        name = "localhost" if secure is not None else None
        wire = Wire(*await asyncio.open_connection("127.0.0.1", port, ssl=secure, server_hostname=name))
        self.wires.append(wire)
        return wire

    async def connect_unix(self) -> Wire:
        wire = Wire(*await asyncio.open_unix_connection(self.settings.admin.socket))
        self.wires.append(wire)
        return wire

    async def key(self, tier: str = "open", **options: Any) -> str:
        async with AdminClient(self.settings.admin.socket) as client:
            name = f"account-{len(await client.list_accounts())}"
            await client.create_account(NewAccount(name))
            return (await client.create_key(NewKey(account=name, tier=tier, name="k", **options))).secret

    async def revoke(self, key: str) -> None:
        async with AdminClient(self.settings.admin.socket) as client:
            await client.revoke_key(key.removeprefix("sk-th_").partition("_")[0])

    async def ask(self, key: str | None, body: dict[str, Any] | bytes | None = None, **options: Any) -> Wire:
        """Send a chat request on a connection of its own."""
        wire = await self.connect()
        await wire.send(request(key, body if body is not None else chat(), **options))
        return wire

    def rows(self, table: str = "ledger", by: str = "created") -> list[dict[str, Any]]:
        if self.postgres is not None:
            # The table is the test's own word.
            query = f"SELECT * FROM {table} ORDER BY created"  # noqa: S608
            return self.postgres.rows(query, self.postgres.name_in(self.settings.database.url))
        path = Path(self.settings.database.url.removeprefix("sqlite+aiosqlite:///"))
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            # The table is the test's own word.
            return [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY {by}")]  # noqa: S608

    async def change(self, *statements: str) -> None:
        """Write into the database behind the proxy's back, in one transaction."""

        def written() -> None:
            path = self.settings.database.url.removeprefix("sqlite+aiosqlite:///")
            with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S)) as database, database:
                database.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    database.execute(statement)

        await asyncio.to_thread(written)

    async def row(self, state: str) -> dict[str, Any]:
        """The only row of the ledger, once it is in a state."""
        found: list[dict[str, Any]] = await self.until(
            lambda: (rows := self.rows()) and rows[0]["state"] == state and rows
        )
        (row,) = found
        return row


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": True} | fields


def request(
    key: str | None,
    body: dict[str, Any] | bytes = b"",
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    headers: dict[str, str] | None = None,
) -> bytes:
    """A request in bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"host": "tollhouse", "content-length": str(len(content))}
    if key is not None:
        told["authorization"] = f"Bearer {key}"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (told | (headers or {})).items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content
