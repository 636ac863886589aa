"""The front's life with a real supervisor and a made-up engine process: ready, drained, hurried, not started."""

import asyncio
import io
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typing_extensions import override

from sidecar import app
from sidecar.api.front import Front, Language
from sidecar.api.listener import open_socket
from sidecar.engine.config import EngineConfig
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Metrics
from sidecar.notify import Notifier
from sidecar.settings import Metrics as MetricsSettings
from sidecar.settings import Model, Sidecar, Timeouts
from sidecar.supervisor import Supervisor
from sidecar.tokenizer.model_tokenizer import TokenizerUnusableError
from sidecar.wire.frames import Cancel, Command, Delta, Finish, Report, Step, Submit
from tests.fakes.engine import READY, language

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


class LineLog(io.StringIO):
    """A log that can be waited for. Mutable: `_news`."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    @override
    def write(self, text: str) -> int:
        self._news.set()
        return super().write(text)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    async def event(self, name: str) -> dict[str, Any]:
        while True:
            for line in self.events():
                if line["event"] == name:
                    return line
            self._news.clear()
            await self._news.wait()


class FakeLink:
    """An engine process that begins each sequence with "a", and ends it when the test says. Mutable: all of it."""

    pid = 77
    congested = False

    def __init__(self) -> None:
        self.reported: asyncio.Queue[Report | None] = asyncio.Queue()
        self.begun = asyncio.Event()
        self.submits: list[Submit] = []

    def send(self, command: Command) -> None:
        match command:
            case Submit():
                self.submits.append(command)
                self.step(Delta(command.request_id, command.index, [ord("a")], 1))
                self.begun.set()
            case Cancel():
                self.step(Delta(command.request_id, command.index, [], 1, Finish.CANCELLED))

    def step(self, delta: Delta) -> None:
        self.reported.put_nowait(Step(1, [delta], 1, 0, 0, 1, 1, 100, 0.01, 0.01))

    def finish(self) -> None:
        for submit in self.submits:
            self.step(Delta(submit.request_id, submit.index, [ord("b")], 2, Finish.LENGTH))

    async def reports(self) -> AsyncIterator[Report]:
        while (report := await self.reported.get()) is not None:
            yield report

    async def terminate(self, grace_s: float) -> int:
        self.reported.put_nowait(None)
        return 0


class Stage:
    """A house on a socket, with its engine and its log. Mutable: `load_error`, what loading the tokenizer raises."""

    def __init__(self, folder: Path, drain_s: float) -> None:
        self.path = folder / "s.sock"
        self.link = FakeLink()
        self.output = LineLog()
        self.load_error: Exception | None = None
        settings = Sidecar(
            model=Model(id="m", source="m"), socket=str(self.path), timeouts=Timeouts(drain_s=drain_s), max_queue=4
        )
        log = JsonLog(self.output)
        supervisor = Supervisor(
            app.engine_config(settings, folder), settings.timeouts, 4, log, spawn=self.spawn, sleep=asyncio.sleep
        )
        front = Front(settings, supervisor, Metrics("m"), log)
        room = app.Room(front, supervisor, self.load)
        self.house = app.House(settings, log, (room,), app.application(front))
        supervisor.on_ready.append(lambda _: room.announce())
        self.listening: socket.socket = open_socket(self.path, log)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.manager.bind(str(folder / "notify"))
        environment = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "30000000"}
        self.notifier = Notifier(environment, log)

    def told(self) -> list[str]:
        """What the service manager was told since the last look, each in its first line."""
        said: list[str] = []
        while True:
            try:
                said.append(self.manager.recv(4096).decode().partition("\n")[0])
            except BlockingIOError:
                return said

    async def spawn(self, config: EngineConfig) -> FakeLink:
        return self.link

    def load(self) -> Language:
        if self.load_error is not None:
            raise self.load_error
        return language()

    def start(self) -> asyncio.Task[int]:
        self.link.reported.put_nowait(READY)
        return asyncio.create_task(app._run(self.house, self.listening, self.notifier))

    async def ask(self, document: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        body = json.dumps(document).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        return reader, writer


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A parameter is how long a drain may take."""
    stage = Stage(tmp_path, getattr(request, "param", 30.0))
    yield stage
    stage.listening.close()
    stage.manager.close()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_readiness_is_told_with_what_was_loaded(stage: Stage) -> None:
    serving = stage.start()
    line = await stage.output.event("ready")
    assert (line["model"], line["tier"], line["precision"], line["max_context"]) == ("m", "packed", "fp32", 100)
    assert (line["load_s"], line["engine_pid"]) == (0.75, 77)
    terminate()
    assert await serving == 0
    assert [event["event"] for event in stage.output.events()].count("ready") == 1


async def test_the_service_manager_hears_of_readiness_of_life_and_of_the_end(stage: Stage) -> None:
    serving = stage.start()
    await stage.output.event("ready")
    terminate()
    assert await serving == 0
    told = stage.told()
    assert told == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


async def test_a_sidecar_without_its_tokenizer_is_not_told_ready(stage: Stage) -> None:
    stage.load_error = TokenizerUnusableError("no")
    assert await stage.start() == 1
    assert "READY=1" not in stage.told()


async def test_a_drain_lets_a_running_stream_end_and_takes_nothing_new(stage: Stage) -> None:
    serving = stage.start()
    await stage.output.event("ready")
    reader, writer = await stage.ask(CHAT)
    await stage.link.begun.wait()
    terminate()
    await stage.output.event("draining")
    late, late_writer = await stage.ask(CHAT)
    refusal = await late.read()
    assert refusal.startswith(b"HTTP/1.1 503")
    assert b'"code":"shutting_down"' in refusal
    stage.link.finish()
    answer = await reader.read()
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert await serving == 0
    for one in (writer, late_writer):
        one.close()


async def test_a_second_signal_does_not_wait(stage: Stage) -> None:
    serving = stage.start()
    await stage.output.event("ready")
    reader, writer = await stage.ask(CHAT)
    await stage.link.begun.wait()
    terminate()
    await stage.output.event("draining")
    terminate()
    answer = await reader.read()
    assert b'data: {"error"' in answer
    assert b'"code":"shutting_down"' in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert await serving == 0
    writer.close()


@pytest.mark.parametrize("stage", [0.01], indirect=True)
async def test_a_drain_does_not_wait_for_ever(stage: Stage) -> None:
    serving = stage.start()
    await stage.output.event("ready")
    reader, writer = await stage.ask(CHAT)
    await stage.link.begun.wait()
    terminate()
    assert b"[DONE]" not in await reader.read()
    assert await serving == 0
    writer.close()


async def test_without_a_tokenizer_there_is_nothing_to_serve(stage: Stage) -> None:
    stage.load_error = TokenizerUnusableError("no tokenizer.json")
    assert await stage.start() == 1
    line = await stage.output.event("start_failed")
    assert line["reason"] == "no tokenizer.json"
    assert "ready" not in [event["event"] for event in stage.output.events()]


async def test_a_model_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    output = LineLog()
    settings = Sidecar(model=Model(id="m", source=str(tmp_path / "nowhere")), socket=str(tmp_path / "s.sock"))
    assert await app.serve(settings, JsonLog(output)) == 1
    line = await output.event("start_failed")
    assert line["hint"]
    assert not (tmp_path / "s.sock").exists()


def test_the_engine_is_told_the_settings_and_where_its_slots_are(tmp_path: Path) -> None:
    settings = Sidecar(model=Model(id="m", source="m", max_context=64), socket=str(tmp_path / "sidecar.sock"))
    config = app.engine_config(settings, tmp_path / "model")
    assert msgspec.to_builtins(config) == {
        "model_path": str(tmp_path / "model"),
        "slots_path": str(tmp_path / "sidecar.slots"),
        "precision": "fp32",
        "device": "cpu",
        "max_sequences": 64,
        "step_token_budget": 512,
        "max_context": 64,
        "kv_tokens": None,
        "threads": None,
        "tier": "auto",
        "prefix_tokens": None,
        "speculation": 4,
        "embeds": False,
    }


def test_the_load_is_published_by_vllms_names_where_the_settings_say_so(tmp_path: Path) -> None:
    for compat, wanted in (((), False), (("vllm",), True)):
        settings = Sidecar(model=Model(id="m", source="m"), metrics=MetricsSettings(compat=compat))
        house = app.build(settings, tmp_path, JsonLog(io.StringIO()))
        page = house.rooms[0].front.metrics.render()
        assert (b'vllm:num_requests_waiting{model_name="m"} 0.0' in page) is wanted
