"""The engine's life: started, ready, watched, ended, started again. What it says goes to a listener.

States, by `reason`: `loading` until the first Ready; empty while ready; `stalled` from the moment the watch finds no
step until the process is ended; `restarting` while it comes back; `failed` after a start that came to nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from sidecar.engine.client import EngineProtocolError
from sidecar.engine.config import EngineConfig
from sidecar.jsonlog import JsonLog
from sidecar.settings import Timeouts
from sidecar.supervisor.pulse import Pulse, Verdict
from sidecar.wire.frames import Command, Failed, Ready, Report, Step
from sidecar.wire.slots import SlotFileError, SlotReader

FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 30.0
# An engine that was ready for so long is not in a loop of crashes: the next delay is the first one again.
STEADY_S: Final = 60.0
WATCH_EVERY_S: Final = 1.0
# The watch came round so late that this process must have been stopped, or the machine suspended.
_ABSENT_S: Final = 5.0
EXIT_GRACE_S: Final = 5.0
# How long a load is thought to take, until one has been timed.
_LOAD_GUESS_S: Final = 10.0


class EngineLink(Protocol):
    """A running engine process, as `sidecar.engine.client.EngineProcess` is one."""

    @property
    def pid(self) -> int: ...
    @property
    def congested(self) -> bool: ...
    def send(self, command: Command) -> None: ...
    def reports(self) -> AsyncIterator[Report]: ...
    async def terminate(self, grace_s: float) -> int: ...


class Listener(Protocol):
    """Who is told what the engine says."""

    @property
    def has_work(self) -> bool:
        """Whether the engine has sequences."""

    def stepped(self, step: Step) -> None: ...
    def lost(self) -> int:
        """The process is gone, and all it had; gives how many requests that were."""


Spawn = Callable[[EngineConfig], Awaitable[EngineLink]]
Sleep = Callable[[float], Awaitable[None]]


class EngineLife:
    """One engine, kept running by `run`.

    Mutable: `link` (None between two processes), `info` (of the last Ready), `ready`, `reason`, `restarts`, `pulse`,
    `slots` (None where there is no file yet), `on_ready` (callbacks), `_load_s` (how long the last load took),
    `_down_s` (since when it is not ready, if it is not), `_stopping`.
    """

    def __init__(
        self,
        config: EngineConfig,
        timeouts: Timeouts,
        listener: Listener,
        log: JsonLog,
        *,
        spawn: Spawn,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._config = config
        self._timeouts = timeouts
        self._listener = listener
        self._log = log
        self._spawn = spawn
        self._clock = clock
        self._sleep = sleep
        self.link: EngineLink | None = None
        self.info: Ready | None = None
        self.ready = False
        self.reason = "loading"
        self.restarts = 0
        self.pulse = Pulse(timeouts, clock())
        self.slots: SlotReader | None = None
        self.on_ready: list[Callable[[Ready], None]] = []
        self._load_s = _LOAD_GUESS_S
        self._down_s = clock()
        self._stopping = asyncio.Event()

    def expected_s(self) -> float:
        """How long until the engine should be ready, if all goes well."""
        return self._load_s - (self._clock() - self.pulse.started_s)

    def beat_age_s(self) -> float | None:
        """Seconds since the last step, by the slot file if it can be read; None before the first one."""
        if not self.ready:
            return None
        self._take_pulse()
        return self.pulse.age_s(self._clock())

    @property
    def lives(self) -> bool:
        """Whether it serves, or may still come back by itself: longer than a load may take it should not be away."""
        now_s = self._clock()
        if not self.ready:
            return now_s - self._down_s <= self._timeouts.load_s
        self._take_pulse()
        return self.pulse.verdict(now_s, has_work=self._listener.has_work) is Verdict.WELL

    async def stop(self) -> None:
        """End the engine, and with it `run`."""
        self._stopping.set()
        if self.link is not None:
            await self.link.terminate(EXIT_GRACE_S)

    async def run(self) -> None:
        """Keep an engine running until `stop`. Cancelled, it ends the engine at once."""
        delay_s = FIRST_DELAY_S
        try:
            await self._open_slots()
            while not self._stopping.is_set():
                began = self.restarts
                steady = await self._one_life()
                if self._stopping.is_set():
                    break
                delay_s = FIRST_DELAY_S if steady else delay_s
                self._log.warning("engine_restarts", delay_s=delay_s, reason=self.reason)
                await self._pause(delay_s)
                delay_s = min(LONGEST_DELAY_S, delay_s * 2)
                self.restarts = began + 1
        finally:
            self._close_slots()

    async def _one_life(self) -> bool:
        """Run one process from its start to its end; say whether it was ready for long."""
        self.pulse = Pulse(self._timeouts, self._clock())
        self.reason = "loading" if self.info is None else "restarting"
        try:
            link = self.link = await self._spawn(self._config)
        except OSError as exc:
            self._log.exception("engine_not_started", exc)
            self.reason = "failed"
            return False
        self._log.info("engine_started", engine_pid=link.pid)
        grace_s = 0.0
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch(link), name="engine watch")
                grace_s = await self._listen(link)
                watch.cancel()
        finally:
            # It has hung up, so it is ending; one that does not must not run beside its successor.
            exit_code = await link.terminate(grace_s)
            self._ended(link, exit_code)
        return self.pulse.ready_s is not None and self._clock() - self.pulse.ready_s >= STEADY_S

    async def _listen(self, link: EngineLink) -> float:
        """Pass on what the engine says until it hangs up; gives how long it may take to end."""
        if self._stopping.is_set():
            return 0.0
        try:
            async for report in link.reports():
                await self._heard(report, link)
        except EngineProtocolError as exc:
            self._log.exception("engine_protocol_broken", exc, engine_pid=link.pid)
            return 0.0
        return EXIT_GRACE_S

    async def _heard(self, report: Report, link: EngineLink) -> None:
        if isinstance(report, Step):
            self.pulse.alive(self._clock())
            self._listener.stepped(report)
        elif isinstance(report, Failed):
            self._log.error("engine_failed", engine_pid=link.pid, message=report.message)
        else:
            await self._open_slots()
            self.pulse.ready(self._clock())
            self._load_s = self._clock() - self.pulse.started_s
            self.info = report
            self.ready = True
            self.reason = ""
            for callback in self.on_ready:
                callback(report)

    def _ended(self, link: EngineLink, exit_code: int) -> None:
        self.link = None
        self._unready("failed" if self.pulse.ready_s is None else "restarting")
        lost = self._listener.lost()
        say = self._log.info if self._stopping.is_set() else self._log.error
        say("engine_ended", engine_pid=link.pid, exit_code=exit_code, requests=lost)

    async def _watch(self, link: EngineLink) -> None:
        """End a process that loads for ever, or has work and takes no step."""
        verdict = Verdict.WELL
        while verdict is Verdict.WELL:
            before_s = self._clock()
            await self._sleep(WATCH_EVERY_S)
            now_s = self._clock()
            if now_s - before_s > WATCH_EVERY_S + _ABSENT_S:
                self.pulse.alive(now_s)
            self._take_pulse()
            verdict = self.pulse.verdict(now_s, has_work=self._listener.has_work)
        self._unready("stalled" if verdict is Verdict.STALLED else "failed")
        self._log.error("engine_stalled", engine_pid=link.pid, reason=verdict.value)
        await link.terminate(0.0)

    def _unready(self, reason: str) -> None:
        if self.ready:
            self._down_s = self._clock()
        self.ready = False
        self.reason = reason

    def _take_pulse(self) -> None:
        """A step shows in the slot file even when its report is still on the way."""
        if self.slots is not None and self.ready:
            self.pulse.alive(self.slots.heartbeat().monotonic_ns / 1e9)

    async def _open_slots(self) -> None:
        """Map the slot file as it is now: before the first Ready it is an earlier engine's, if there is one."""
        try:
            slots = await asyncio.to_thread(SlotReader, Path(self._config.slots_path))
        except SlotFileError:
            if self.pulse.ready_s is not None or self.link is not None:
                self._log.warning("slots_unreadable", path=self._config.slots_path)
            return
        self._close_slots()
        self.slots = slots

    def _close_slots(self) -> None:
        if self.slots is not None:
            self.slots.close()
            self.slots = None

    async def _pause(self, delay_s: float) -> None:
        """Sleep, or until `stop`."""
        waits = [asyncio.ensure_future(self._sleep(delay_s)), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
