"""The front's end of the compiling process: what is compiled is kept, and compiled once however many ask at a time.

The process is started when the first grammar comes, for it takes seconds and 300 MB, and most never need it; once there
it stays. One that ends is started again with the next grammar.
"""

import asyncio
import contextlib
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.child import start_child
from sidecar.wire.frames import FrameReader, FrameTooLargeError, encode_frame
from sidecar.wire.grammars import Compiled, CompilerCommand, CompilerReport, Grammar, Learnt, Refused, Vocabulary

MOST_KEPT: Final = 1024
MOST_KEPT_BYTES: Final = 64 * 1024 * 1024
# Of those that wait for the process, which does one after the other.
MOST_WAITING: Final = 64
# For importing torch and xgrammar on a busy machine, and then for a child that its parent fails to end.
START_S: Final = 60.0
_GRACE_S: Final = 10.0
_READ_BYTES: Final = 1 << 20


class GrammarRefusedError(Exception):
    """The grammar cannot be compiled; the text says why."""


class CompilerBusyError(Exception):
    """Too many grammars wait to be compiled."""


class CompilerLostError(Exception):
    """The compiling process ended, or could not be started."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for the engine. `vocabulary` is what it was compiled for, the same for all of one model."""

    key: str
    vocabulary: bytes
    compiled: bytes


class Link(Protocol):
    """A compiling process; `CompilerProcess` is one."""

    async def ask(self, command: CompilerCommand, most_s: float) -> CompilerReport:
        """Raises CompilerLostError."""

    async def end(self) -> None: ...


class CompilerProcess:
    """A running process, from its start to its end. Mutable: the frame reader's buffer."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        # msgspec takes a union for a type, which mypy cannot say.
        self._frames: FrameReader[CompilerReport] = FrameReader(CompilerReport)  # type: ignore[arg-type]

    @classmethod
    async def start(
        cls, most_wall_s: float, program: Sequence[str] = (sys.executable, "-m", "sidecar.grammars")
    ) -> "CompilerProcess":
        """Raises CompilerLostError."""
        try:
            child = await start_child(program, ("--most-wall-s", str(most_wall_s)), _READ_BYTES)
        except OSError as exc:
            raise CompilerLostError(str(exc)) from exc
        return cls(child.process, child.reader, child.writer)

    async def ask(self, command: CompilerCommand, most_s: float) -> CompilerReport:
        try:
            async with asyncio.timeout(most_s):
                self._writer.write(encode_frame(command))
                while data := await self._reader.read(_READ_BYTES):
                    for report in self._frames.feed(data):
                        return report
        except (TimeoutError, ConnectionError, FrameTooLargeError, ValueError) as exc:
            raise CompilerLostError(f"{type(exc).__name__}: {exc}") from exc
        raise CompilerLostError("the compiling process has hung up")

    async def end(self) -> None:
        self._writer.transport.abort()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


Start = Callable[[float], Awaitable[Link]]


class Compiler:
    """Compiles for one vocabulary, and remembers what it compiled and what it refused.

    Mutable: `_link` and `_learnt` (None without a process), `_kept` (by key, oldest use first), `_kept_bytes`,
    `_running` (the task of each grammar that is being compiled), `_turn`.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        most_wall_s: float,
        on_compiled: Callable[[float], None],
        *,
        start: Start = CompilerProcess.start,
    ) -> None:
        """`vocabulary` takes long, and is called in a thread. `on_compiled` is told how many seconds each took."""
        self._vocabulary = vocabulary
        self._most_wall_s = most_wall_s
        self._on_compiled = on_compiled
        self._start = start
        self._link: Link | None = None
        self._learnt = b""
        self._kept: OrderedDict[str, CompiledGrammar | Refused] = OrderedDict()
        self._kept_bytes = 0
        self._running: dict[str, asyncio.Task[CompiledGrammar | Refused]] = {}
        self._turn = asyncio.Lock()

    async def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises GrammarRefusedError, CompilerBusyError, CompilerLostError."""
        key = grammar.key
        found = self._kept.get(key)
        if found is None:
            # A task of its own: who asked may leave, and others may ask meanwhile.
            task = self._running.get(key) or self._begin(key, grammar)
            found = await asyncio.shield(task)
        else:
            self._kept.move_to_end(key)
        if isinstance(found, Refused):
            raise GrammarRefusedError(found.reason)
        return found

    async def close(self) -> None:
        """End the process, and what it was asked."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end_process()

    def _begin(self, key: str, grammar: Grammar) -> asyncio.Task[CompiledGrammar | Refused]:
        if len(self._running) >= MOST_WAITING:
            raise CompilerBusyError
        task = asyncio.create_task(self._compile(key, grammar), name="compile a grammar")
        self._running[key] = task

        def ended(task: asyncio.Task[CompiledGrammar | Refused]) -> None:
            del self._running[key]
            if not task.cancelled():
                # Whoever asked may have left: then nobody else looks at it.
                task.exception()

        task.add_done_callback(ended)
        return task

    async def _compile(self, key: str, grammar: Grammar) -> CompiledGrammar | Refused:
        async with self._turn:
            try:
                link = self._link or await self._start_process()
                began_s = asyncio.get_running_loop().time()
                report = await link.ask(grammar, self._most_wall_s + _GRACE_S)
                self._on_compiled(asyncio.get_running_loop().time() - began_s)
            except BaseException:
                # Cut short, it would give the next one this one's answer.
                await self._end_process()
                raise
            if isinstance(report, Compiled):
                made: CompiledGrammar | Refused = CompiledGrammar(key, self._learnt, report.compiled)
            elif isinstance(report, Refused):
                made = report
            else:
                raise CompilerLostError("the compiling process answered something else")
            self._keep(key, made)
            return made

    async def _start_process(self) -> Link:
        vocabulary = await asyncio.to_thread(self._vocabulary)
        link = self._link = await self._start(self._most_wall_s)
        report = await link.ask(vocabulary, START_S)
        if not isinstance(report, Learnt):
            raise CompilerLostError("the compiling process did not take the vocabulary")
        self._learnt = report.vocabulary
        return link

    async def _end_process(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.end()

    def _keep(self, key: str, made: CompiledGrammar | Refused) -> None:
        self._kept[key] = made
        self._kept_bytes += _size(made)
        while len(self._kept) > MOST_KEPT or self._kept_bytes > MOST_KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= _size(dropped)


def _size(made: CompiledGrammar | Refused) -> int:
    return len(made.compiled) if isinstance(made, CompiledGrammar) else len(made.reason)
