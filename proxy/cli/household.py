"""The servers that `tollhouse up` runs together: started in order, watched, and ended in the opposite order.

The first Ctrl-C or SIGTERM drains, the second tells the servers to end now, the third kills them.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from proxy.cli.child import Child
from proxy.cli.exits import CommandError, Exit
from proxy.cli.program import program

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# Above the time a server gives its running requests: for closing files and the last rows.
GRACE_S: Final = 10.0


class Household:
    """Mutable: `_interrupts` (how often it was asked to end), `_asked` (set by the first time), `_ended_well`."""

    def __init__(self, children: Sequence[Child], *, drain_s: float, remark: Callable[[str], None]) -> None:
        self._children = children
        self._drain_s = drain_s
        self._remark = remark
        self._interrupts = 0
        self._asked = asyncio.Event()
        self._ended_well = True

    async def live(
        self, open_up: Callable[[], Awaitable[None]], echo: Callable[[Child, str], None] | None = None
    ) -> Exit:
        """Run the children until someone asks for the end. `open_up` waits for readiness and announces it.

        Raises CommandError if a child ends by itself, and what `open_up` raises.
        """
        async with self._signals(), self._started(echo) as ends:
            opening = asyncio.ensure_future(open_up())
            asked = asyncio.create_task(self._asked.wait())
            try:
                await self._first(opening, asked, ends)
                if not opening.done():
                    return Exit.INTERRUPTED
                opening.result()
                await self._first(asked, asked, ends)
            finally:
                await _cancelled(opening, asked)
        return Exit.OK if self._ended_well else Exit.FAILED

    async def _first(
        self,
        wanted: asyncio.Future[None] | asyncio.Task[bool],
        asked: asyncio.Task[bool],
        ends: list[asyncio.Task[int]],
    ) -> None:
        """Wait for `wanted`, or for the wish to end. Raises CommandError if a child ends before."""
        await asyncio.wait({wanted, asked, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for child, end in zip(self._children, ends, strict=True):
            if end.done() and not asked.done():
                words, called = await child.last_words(), await asyncio.to_thread(program)
                raise _ended(child, end.result(), words, called)

    @contextlib.asynccontextmanager
    async def _started(self, echo: Callable[[Child, str], None] | None) -> AsyncIterator[list[asyncio.Task[int]]]:
        tasks: list[asyncio.Task[None]] = []
        ends: list[asyncio.Task[int]] = []
        try:
            for child in self._children:
                await child.start()
                tasks.append(asyncio.create_task(child.follow(_to(child, echo)), name=f"follow {child.name}"))
                ends.append(asyncio.create_task(child.ended(), name=f"end of {child.name}"))
            yield ends
        finally:
            await self._end_all()
            await _cancelled(*tasks, *ends)

    async def _end_all(self) -> None:
        for child in reversed(self._children):
            if not await child.stop(self._drain_s + GRACE_S):
                self._ended_well = False
                more = f"; {child.log} tells more" if await child.last_words() else ""
                self._remark(f"The {child.name} did not end well{more}.")

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def interrupt(self) -> None:
        """Ask for the end; each further time more urgently."""
        self._interrupts += 1
        self._asked.set()
        if self._interrupts == 1:
            self._remark("Ending: running answers are finished first. Once more ends them now.")
            return
        for child in self._children:
            child.signal(signal.SIGTERM if self._interrupts == 2 else signal.SIGKILL)


def _to(child: Child, echo: Callable[[Child, str], None] | None) -> Callable[[str], None] | None:
    return None if echo is None else lambda line: echo(child, line)


def _ended(child: Child, code: int, words: str, called: str) -> CommandError:
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return CommandError(
        f"The {child.name} ended {how}. The end of {child.log}:\n\n{words or '  (it is empty)'}\n",
        hint=f"`{called} doctor` looks for causes.",
    )


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
