"""A front with a fake engine on a real Unix socket, and a client that reads bytes."""

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from sidecar.api.front import Front
from sidecar.api.listener import GuardedSite, close_socket, open_socket
from sidecar.app import application
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Metrics
from sidecar.settings import Api, Embedding, Model, Sidecar, Timeouts
from sidecar.spans import Tracer
from tests.fakes.engine import FakeEngine, language


@dataclass
class Reply:
    """A whole answer; `clean` tells whether its end was a proper one."""

    status: int
    headers: dict[str, str]
    body: bytes
    clean: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def frames(self) -> list[str]:
        return self.body.decode().removesuffix("\n\n").split("\n\n")


@dataclass
class Connection:
    """One connection, speaking plain HTTP/1.1 with chunked bodies."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = {"host": "sidecar", "content-length": str(len(body)), **given}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        return int(lines[0].split()[1]), headers

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its proper end. Raises IncompleteReadError at any other."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def reply(self) -> Reply:
        try:
            status, headers = await self.head()
        except asyncio.IncompleteReadError:
            return Reply(0, {}, b"", clean=False)
        if headers.get("transfer-encoding") != "chunked":
            return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])), clean=True)
        body = b""
        try:
            while chunk := await self.chunk():
                body += chunk
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(status, headers, body, clean=False)
        return Reply(status, headers, body, clean=True)

    def leave(self) -> None:
        self.writer.transport.abort()


@dataclass
class Desk:
    """A running front."""

    path: Path
    engine: FakeEngine
    front: Front
    log: io.StringIO
    connections: list[Connection] = field(default_factory=list)

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_unix_connection(str(self.path)))
        self.connections.append(connection)
        return connection

    async def ask(self, method: str, path: str, document: object = None, **headers: str) -> Reply:
        connection = await self.connect()
        body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        await connection.ask(method, path, body, **headers)
        return await connection.reply()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


Serve = Callable[..., Awaitable[Desk]]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: the second is what runs in production, and its transports are not asyncio's."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start a front; the options are the engine and the settings that a test cares about."""
    started: list[tuple[web.AppRunner, Any, Path, Desk]] = []

    async def start(
        engine: FakeEngine | None = None,
        *,
        api: Api | None = None,
        timeouts: Timeouts | None = None,
        allowed: frozenset[int] | None = None,
        encoder: FakeEngine | None = None,
        tracer: Tracer | None = None,
    ) -> Desk:
        """`encoder` is the engine of the embedding model "org/e", if one is to be served."""
        settings = Sidecar(
            model=Model(id="org/m", source="m"),
            embedding=None if encoder is None else Embedding(id="org/e", source="e"),
            api=api or Api(),
            timeouts=timeouts or Timeouts(),
            max_queue=4,
        )
        output = io.StringIO()
        log = JsonLog(output)
        engine = engine or FakeEngine()
        metrics = Metrics("org/m")
        front = Front(settings, engine, metrics, log)
        front.language = language()
        embedding = None
        if encoder is not None:
            embedding = Front(settings, encoder, metrics, log, embeds=True)
            embedding.language = language()
        path = tmp_path / "s" / "sidecar.sock"
        listening = await asyncio.to_thread(open_socket, path, log)
        runner = web.AppRunner(
            application(front, embedding, tracer),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        await GuardedSite(runner, listening, path, allowed or frozenset({os.getuid()}), log).start()
        desk = Desk(path, engine, front, output)
        started.append((runner, listening, path, desk))
        return desk

    yield start
    for runner, listening, path, desk in started:
        for connection in desk.connections:
            connection.leave()
        await runner.cleanup()
        await asyncio.to_thread(close_socket, listening, path)
