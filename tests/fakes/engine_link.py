"""A supervisor on a fake engine process, a fake clock and sleeps that only time handed in ends."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.engine.client import EngineUnreachableError
from sidecar.engine.config import EngineConfig
from sidecar.jsonlog import JsonLog
from sidecar.settings import Timeouts
from sidecar.supervisor import Supervisor
from sidecar.wire.errors import ApiError
from sidecar.wire.frames import Command, Delta, Ready, Report, Sampling, Step, Submit

READY = Ready("packed", "fp32", "cpu", "float32", 64, 2, 16, 1, "fp_1", {"weights": 0.5})
PATIENCE_S = 30.0


def step(*deltas: Delta, number: int = 1, running: int = 0) -> Step:
    return Step(number, list(deltas), running, 0, 0, len(deltas), 0, 64, 0.001, 0.002)


def submit(request_id: str, index: int = 0, prompt: int = 3) -> Submit:
    return Submit(request_id, index, [1] * prompt, 5, Sampling(), [], counts_prompt=index == 0)


async def until(what: Callable[[], object]) -> None:
    """Let the loop turn until `what` holds; a thread may have to do its part."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0)
    await turn()


async def turn() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


class FakeLink:
    """An engine process that says what the test makes it say."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.congested = False
        self.sent: list[Command] = []
        self.graces: list[float] = []
        self.exit_code = 0
        self._reports: asyncio.Queue[Report | Exception | None] = asyncio.Queue()
        self.gone = False

    def send(self, command: Command) -> None:
        if self.gone:
            raise EngineUnreachableError("gone")
        self.sent.append(command)

    async def reports(self) -> AsyncIterator[Report]:
        while (report := await self._reports.get()) is not None:
            if isinstance(report, Exception):
                raise report
            yield report

    async def terminate(self, grace_s: float) -> int:
        self.graces.append(grace_s)
        self.die(self.exit_code)
        return self.exit_code

    def say(self, report: Report | Exception) -> None:
        self._reports.put_nowait(report)

    def die(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.gone = True
        self._reports.put_nowait(None)


class Bench:
    """A supervisor on fakes. Mutable: the clock, the sleepers, the links it started."""

    def __init__(self, slots: Path, max_queue: int = 2) -> None:
        # Slot files carry the machine's own clock, so the fake one starts from it.
        self.now_s = time.monotonic()
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.naps: list[float] = []
        self.links: list[FakeLink] = []
        self.spawn_errors: list[OSError] = []
        self.lines = io.StringIO()
        config = EngineConfig(
            model_path="m",
            slots_path=str(slots),
            precision="fp32",
            device="cpu",
            max_sequences=2,
            step_token_budget=16,
            max_context=None,
            kv_tokens=None,
            threads=None,
        )
        self.supervisor = Supervisor(
            config,
            Timeouts(load_s=100, stall_s=30),
            max_queue,
            JsonLog(self.lines),
            spawn=self.spawn,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    async def spawn(self, config: EngineConfig) -> FakeLink:
        if self.spawn_errors:
            raise self.spawn_errors.pop()
        self.links.append(FakeLink(100 + len(self.links)))
        return self.links[-1]

    async def sleep(self, delay_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now_s + delay_s, woken))
        self.naps.append(delay_s)
        await woken

    async def pass_time(self, seconds: float) -> None:
        """Time goes by second by second, as for a process that runs."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            await self.jump(min(1.0, end_s - self.now_s))

    async def jump(self, seconds: float) -> None:
        """Time goes by at once, as for a process that was stopped."""
        self.now_s += seconds
        due = [woken for at, woken in self.sleepers if at <= self.now_s + 1e-6]
        self.sleepers = [(at, woken) for at, woken in self.sleepers if at > self.now_s + 1e-6]
        for woken in due:
            if not woken.done():
                woken.set_result(None)
        await turn()

    @property
    def link(self) -> FakeLink:
        return self.links[-1]

    async def started(self, count: int = 1) -> FakeLink:
        await until(lambda: len(self.links) == count and self.supervisor.engine_pid == self.link.pid)
        return self.link

    async def made_ready(self, count: int = 1) -> FakeLink:
        link = await self.started(count)
        link.say(READY)
        await until(lambda: self.supervisor.ready)
        return link

    async def crash(self, code: int = 70) -> None:
        self.link.die(code)
        await until(lambda: self.supervisor.engine_pid == 0)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]


def refused(bench: Bench, request_id: str = "r") -> ApiError:
    with pytest.raises(ApiError) as caught:
        bench.supervisor.open(request_id, [submit(request_id)])
    return caught.value
