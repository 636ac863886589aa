"""A time that passes when nothing happens: an event loop that jumps from one event to the next, and its clock.

Whatever waits in it waits in this time: a day of requests takes as long as its decisions do.
"""

import asyncio
import datetime as dt
import selectors
from collections.abc import Mapping
from typing import Any

from typing_extensions import override


class NothingLeftError(Exception):
    """Everything waits for what will never happen."""


class _Jump(selectors.BaseSelector):
    """A selector that does not wait: it moves the loop's time. Mutable: `now_s`, that time."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now_s = 0.0

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready and timeout is None:
            raise NothingLeftError("every task waits, and no time is set for anything")
        if not ready and timeout is not None and timeout > 0:
            self.now_s += timeout
        return ready

    @override
    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    @override
    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    @override
    def close(self) -> None:
        self._real.close()

    @override
    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time starts at 0 and moves only when there is nothing to do."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    @override
    def time(self) -> float:
        return self._jump.now_s

    async def until(self, moment_s: float) -> None:
        """Return at a moment of this loop's time; at once if it is over."""
        reached: asyncio.Future[None] = self.create_future()
        timer = self.call_at(moment_s, self._reach, reached, moment_s)
        try:
            await reached
        finally:
            timer.cancel()

    def _reach(self, reached: asyncio.Future[None], moment_s: float) -> None:
        # The sum of jumps may be a hair before it.
        self._jump.now_s = max(self._jump.now_s, moment_s)
        if not reached.done():
            reached.set_result(None)


class JumpingClock:
    """The clocks of a loop's time, which begins at `start`. A `proxy.clock.Clock`."""

    def __init__(self, loop: JumpingLoop, start: dt.datetime) -> None:
        self._loop = loop
        self._start = start

    def monotonic(self) -> float:
        return self._loop.time()

    def now(self) -> dt.datetime:
        return self._start + dt.timedelta(seconds=self._loop.time())
