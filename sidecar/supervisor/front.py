"""What the front asks of its engine: take a request, say what became of it, stop. The engine's life is `life`'s."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.engine.client import EngineProcess, EngineUnreachableError
from sidecar.engine.config import EngineConfig
from sidecar.grammars.compiler import CompiledGrammar
from sidecar.jsonlog import JsonLog
from sidecar.settings import Timeouts
from sidecar.supervisor.grammars import ToldGrammars
from sidecar.supervisor.life import EngineLife, Sleep, Spawn
from sidecar.supervisor.sequences import Desk, Sequences
from sidecar.supervisor.throughput import Throughput
from sidecar.wire.errors import ApiError, bad_request, unavailable
from sidecar.wire.frames import Cancel, Ready, Step, Submit
from sidecar.wire.internal import RequestState
from sidecar.wire.slots import DEFAULT_CAPACITY

# The SDKs take a retry-after from 1 to 60 seconds seriously (WIRE, 1.4).
_LONGEST_WAIT_S: Final = 60.0


class Supervisor:
    """One engine and the requests it has. `run` it in a task of its own.

    Mutable: `last_step` (None before the first of this process), `on_step` (callbacks), `_draining`, `_idle`, and the
    parts `_life`, `_desk`, `_pace`, `_told`.
    """

    def __init__(
        self,
        config: EngineConfig,
        timeouts: Timeouts,
        max_queue: int,
        log: JsonLog,
        *,
        spawn: Spawn = EngineProcess.start,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._config = config
        self._capacity = config.max_sequences + max_queue
        self._clock = clock
        self._life = EngineLife(config, timeouts, self, log, spawn=spawn, clock=clock, sleep=sleep)
        self._desk = Desk()
        self._pace = Throughput()
        self._told = ToldGrammars()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.last_step: Step | None = None
        self.on_step: list[Callable[[Step], None]] = []

    @property
    def ready(self) -> bool:
        return self._life.ready and not self._draining

    @property
    def reason(self) -> str:
        """Why it is not ready; empty if it is."""
        return "draining" if self._draining else self._life.reason

    @property
    def lives(self) -> bool:
        """Whether its engine serves, or may still come back by itself."""
        return self._life.lives

    @property
    def info(self) -> Ready | None:
        """What the engine said of itself when it was last ready."""
        return self._life.info

    @property
    def on_ready(self) -> list[Callable[[Ready], None]]:
        """Called each time an engine is ready, after a restart too."""
        return self._life.on_ready

    @property
    def restarts(self) -> int:
        return self._life.restarts

    @property
    def engine_pid(self) -> int:
        """0 between two processes."""
        return 0 if self._life.link is None else self._life.link.pid

    @property
    def slots_path(self) -> Path:
        return Path(self._config.slots_path)

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since the engine last ran a step; None before its first."""
        return self._life.beat_age_s()

    @property
    def running(self) -> int:
        """Sequences that the engine runs, by its last step."""
        return 0 if self.last_step is None else min(self.last_step.running, self._desk.open_count)

    @property
    def waiting(self) -> int:
        """Sequences that the engine has and does not run."""
        return self._desk.open_count - self.running

    def open(self, request_id: str, submits: list[Submit], grammar: CompiledGrammar | None = None) -> Sequences:
        """Give a request to the engine; `grammar` is the one that its submits name.

        Raises ApiError: 503 if it cannot be taken now, 409 for an id that runs, 400 for one that is too much for ever.
        """
        link = self._life.link
        if not self.ready or link is None:
            raise self._unready()
        if self._desk.live(request_id) is not None:
            raise ApiError(409, "A request with this id is running.", code="duplicate_request_id", should_retry=False)
        if len(submits) > DEFAULT_CAPACITY:
            raise bad_request(f"This request is {len(submits)} sequences, and {DEFAULT_CAPACITY} may run at a time.")
        # An engine has a usage slot for every sequence, or ends: settings may allow more than there are.
        full = self._desk.open_count + len(submits) > DEFAULT_CAPACITY
        if full or self._desk.open_count >= self._capacity or link.congested:
            raise self._overloaded(len(submits))
        try:
            for command in [] if grammar is None else self._told.tell(grammar):
                link.send(command)
            for submit in submits:
                link.send(submit)
        except EngineUnreachableError as exc:
            raise self._unready() from exc
        if not self.has_work:
            self._life.pulse.alive(self._clock())
        sequences = Sequences(request_id, submits, self._cancel)
        self._desk.add(sequences)
        self._idle.clear()
        return sequences

    def usage(self, request_id: str) -> RequestState:
        """What a request has used, while it runs and after; by the usage slots where they know more than we do."""
        live = self._desk.live(request_id)
        if live is not None:
            return live.state
        ended = self._desk.ended(request_id)
        if ended is not None and not ended.lost:
            return ended.state
        # Lost with its engine, or an earlier front's: nothing runs for it any more.
        slots = self._life.slots
        if slots is None:
            return RequestState(False, False, 0, 0) if ended is None else ended.state
        found = slots.usage(request_id)
        if found is None:
            # It never came to the engine, which died before it read its commands: nothing of it ran.
            return RequestState(False, False, 0, 0)
        return RequestState(True, False, found.prompt_tokens, found.completion_tokens)

    async def cancel_request(self, request_id: str) -> RequestState:
        """End a request and give its state once the engine has let go of it."""
        live = self._desk.live(request_id)
        if live is not None:
            live.cancel()
            # No timeout: an engine that does not let go is stalled, and the watch ends it, which lets go of everything.
            await live.closed()
        return self.usage(request_id)

    def drain(self) -> None:
        """Accept nothing new, for good; what runs goes on."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until the engine has no request left."""
        await self._idle.wait()

    async def stop(self) -> None:
        """End the engine, and with it `run`."""
        self.drain()
        await self._life.stop()

    async def run(self) -> None:
        """Keep an engine running until `stop`. Cancelled, it ends the engine at once."""
        await self._life.run()

    @property
    def has_work(self) -> bool:
        """For `life`: whether the engine has sequences."""
        return self._desk.open_count > 0

    def stepped(self, step: Step) -> None:
        """For `life`: the engine has run a step."""
        self.last_step = step
        self._pace.ended(self._clock(), self._desk.deliver(step.deltas))
        if not self.has_work:
            self._idle.set()
        for callback in self.on_step:
            callback(step)

    def lost(self) -> int:
        """For `life`: the engine is gone."""
        self.last_step = None
        self._told = ToldGrammars()
        lost = self._desk.lose_all()
        self._idle.set()
        return lost

    def _cancel(self, command: Cancel) -> None:
        if self._life.link is not None:
            # Gone, or going: then so is the sequence.
            with contextlib.suppress(EngineUnreachableError):
                self._life.link.send(command)

    def _unready(self) -> ApiError:
        if self._draining:
            return unavailable("The server is shutting down.", code="shutting_down", retry_after_s=5.0)
        words = (
            "The model is loading." if self.reason == "loading" else "The model is being loaded again after a fault."
        )
        wait_s = min(_LONGEST_WAIT_S, max(1.0, self._life.expected_s()))
        return unavailable(words, code="model_loading", retry_after_s=wait_s)

    def _overloaded(self, wanted: int) -> ApiError:
        places = self._desk.open_count + wanted - self._capacity
        wait_s = self._pace.wait_s(self._clock(), max(1, places))
        return unavailable(
            f"The server is overloaded: {self._desk.open_count} sequences run or wait, and {self._capacity} may.",
            code="server_is_overloaded",
            retry_after_s=wait_s,
        )
