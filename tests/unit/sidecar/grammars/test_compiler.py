"""The front's end of the compiling process: asked once, kept within bounds, started again when it is lost."""

import asyncio
from typing import Any

import pytest

from sidecar.grammars import compiler as module
from sidecar.grammars.compiler import (
    CompiledGrammar,
    Compiler,
    CompilerBusyError,
    CompilerLostError,
    GrammarRefusedError,
)
from sidecar.wire.grammars import (
    Compiled,
    CompilerCommand,
    CompilerReport,
    Grammar,
    GrammarKind,
    Learnt,
    Refused,
    Vocabulary,
)


class FakeLink:
    """Compiles a grammar to its own source, when `open` is set. Mutable: `asked`, `ended`, `failure`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended = False
        self.failure: CompilerLostError | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def ask(self, command: CompilerCommand, _most_s: float) -> CompilerReport:
        if isinstance(command, Vocabulary):
            return Learnt(b"v")
        self.asked.append(command.source)
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return Refused("bad") if command.source == "bad" else Compiled(command.source.encode())

    async def end(self) -> None:
        self.ended = True


class House:
    """A compiler whose processes are fakes, in the order in which they were started."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.seconds: list[float] = []
        self.next = FakeLink()
        self.compiler = Compiler(lambda: Vocabulary([], []), 1.0, self.seconds.append, start=self._start)

    async def _start(self, _most_wall_s: float) -> FakeLink:
        self.links.append(self.next)
        return self.next

    async def compile(self, source: str) -> CompiledGrammar:
        return await self.compiler.compile(Grammar(GrammarKind.REGEX, source))


async def test_a_grammar_is_compiled_once() -> None:
    house = House()
    first = await house.compile("a")
    assert (first.compiled, first.vocabulary) == (b"a", b"v")
    assert await house.compile("a") is first
    assert (house.links[0].asked, len(house.seconds)) == (["a"], 1)


async def test_those_who_ask_together_wait_for_one() -> None:
    house = House()
    house.next.open.clear()
    asks = [asyncio.ensure_future(house.compile("a")) for _ in range(3)]
    await asyncio.sleep(0.01)
    asks[0].cancel()
    house.next.open.set()
    assert await asks[1] is await asks[2]
    assert house.next.asked == ["a"]
    with pytest.raises(asyncio.CancelledError):
        await asks[0]


async def test_a_refusal_is_kept_too() -> None:
    house = House()
    for _ in range(2):
        with pytest.raises(GrammarRefusedError, match="bad"):
            await house.compile("bad")
    assert house.next.asked == ["bad"]


async def test_c5_the_oldest_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT_BYTES", 5)
    house = House()
    for source in ("aaa", "bb", "aaa", "cc", "aaa", "bb"):
        await house.compile(source)
    assert house.next.asked == ["aaa", "bb", "cc", "bb"]


async def test_c5_a_lost_process_is_started_again() -> None:
    house = House()
    lost = house.next
    lost.failure = CompilerLostError("gone")
    with pytest.raises(CompilerLostError):
        await house.compile("a")
    assert lost.ended
    house.next = FakeLink()
    assert (await house.compile("a")).compiled == b"a"
    assert len(house.links) == 2


async def test_too_many_at_a_time_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    house = House()
    house.next.open.clear()
    asks = [asyncio.ensure_future(house.compile(source)) for source in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(CompilerBusyError):
        await house.compile("c")
    house.next.open.set()
    assert [(await ask).compiled for ask in asks] == [b"a", b"b"]


async def test_closing_ends_what_runs() -> None:
    house = House()
    house.next.open.clear()
    ask: Any = asyncio.ensure_future(house.compile("a"))
    while not house.next.asked:  # noqa: ASYNC110 - a thread comes first
        await asyncio.sleep(0.001)
    await house.compiler.close()
    assert house.next.ended
    with pytest.raises(asyncio.CancelledError):
        await ask
