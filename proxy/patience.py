"""Waiting for so long and no longer, at the price of one timer. No clock is read, and nothing is decided here.

`asyncio.timeout` and `asyncio.wait` do the same for more cases, and cost ten times as much: too much for what every
request does several times, and every piece of a stream once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any


async def either_within(*waited: asyncio.Future[Any], limit_s: float) -> None:
    """Return when one of them is done, or at the limit. All are left to themselves."""
    for one in waited:
        if one.done():
            return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    for one in waited:
        one.add_done_callback(wake)
    timer = loop.call_later(limit_s, wake)
    try:
        await waiter
    finally:
        timer.cancel()
        for one in waited:
            one.remove_done_callback(wake)


async def done_within(waited: asyncio.Future[Any], limit_s: float) -> bool:
    """Whether it is done by then. It is left to itself if it is not, or if who waits is cancelled."""
    if not waited.done():
        await either_within(waited, limit_s=limit_s)
    return waited.done()


async def unless_late(work: Awaitable[None], limit_s: float, late: Callable[[], None]) -> None:
    """Await `work`, and call `late`, once, if it takes longer: that is to bring it to its end."""
    timer = asyncio.get_running_loop().call_later(limit_s, late)
    try:
        await work
    finally:
        timer.cancel()


class Stretch:
    """A stretch of a task that can be cut: as `asyncio.timeout`, but with nothing that runs out. Used as `async with`.

    Mutable: `was_cut`; `_task`, while it lasts; `_cancelling`, how often the task was cancelled before.
    """

    def __init__(self) -> None:
        self.was_cut = False
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def cut(self) -> None:
        """Cancel what runs in it, in the loop's next turn; `TimeoutError` comes out of it."""
        self._loop.call_soon(self._cut)

    def _cut(self) -> None:
        if self._task is not None and not self.was_cut:
            self.was_cut = True
            self._task.cancel()

    def begin(self) -> None:
        self._task = task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a stretch is a task's")
        self._cancelling = task.cancelling()

    def end(self, kind: type[BaseException] | None, exc: BaseException | None) -> None:
        """Raises TimeoutError if it was cut."""
        task, self._task = self._task, None
        if not self.was_cut or task is None:
            return
        others = task.uncancel() > self._cancelling
        # Cancelled by others, too: that comes first.
        if not others and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from exc

    async def __aenter__(self) -> None:
        self.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(kind, exc)
