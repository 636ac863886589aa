"""The requests that the engine has, and their deltas on the way to whoever waits for them.

A request is here from its acceptance until the engine has let go of its last sequence, whether or not somebody still
listens; after that its count is remembered for a while. Rules:
- a sequence ends with the delta that has `finish`, or with the engine; nothing is delivered for it afterwards;
- what a consumer does not fetch is merged, so it never holds more than the tokens of its own sequences.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from sidecar.wire.frames import Cancel, Delta, Submit
from sidecar.wire.internal import RequestState

REMEMBERED: Final = 4096


class EngineLostError(Exception):
    """The engine process ended while the request ran; its count is in the usage slots."""


class Sequences:
    """The sequences of one request: an async iterator of their deltas, for one consumer.

    Leaving its `async with` cancels what still runs, without waiting for it. Mutable: `_open` (indices that run),
    `_pending` (deltas not yet fetched), `_generated` (tokens by index), `_watcher` (told of each delta while any
    sequence runs), `lost`, and the two events.
    """

    def __init__(self, request_id: str, submits: list[Submit], send: Callable[[Cancel], None]) -> None:
        self.request_id = request_id
        self.lost = False
        self._prompt_tokens = sum(len(submit.prompt_ids) for submit in submits if submit.counts_prompt)
        self._open = {submit.index for submit in submits}
        self._generated = dict.fromkeys(self._open, 0)
        self._pending: dict[int, Delta] = {}
        self._watcher: Callable[[Delta], None] | None = None
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self._send = send

    @property
    def open_count(self) -> int:
        """How many of the sequences run or wait."""
        return len(self._open)

    @property
    def state(self) -> RequestState:
        """What the request has used so far, as the engine reported it."""
        return RequestState(
            known=True,
            running=bool(self._open),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(self._generated.values()),
        )

    def watch(self, told: Callable[[Delta], None]) -> None:
        """Tell of each delta when the engine gives it, however late it is fetched."""
        self._watcher = told

    def cancel(self, index: int | None = None, generated: int | None = None) -> None:
        """End one sequence, or all that run. `generated` is how many tokens count, also of one that has just ended."""
        if index is not None and index not in self._open and generated is not None and not self.lost:
            self._generated[index] = min(generated, self._generated[index])
            self._send(Cancel(self.request_id, index, generated))
        for one in sorted(self._open):
            if index is None or one == index:
                self._send(Cancel(self.request_id, one, generated))

    async def closed(self) -> None:
        """Wait until the engine has let go of every sequence, or is gone itself."""
        await self._closed.wait()

    def deliver(self, delta: Delta) -> bool:
        """Take a delta in, and say whether its sequence ended with it."""
        if delta.index not in self._open:
            return False
        self._generated[delta.index] = delta.generated
        if self._watcher is not None:
            self._watcher(delta)
        before = self._pending.get(delta.index)
        self._pending[delta.index] = delta if before is None else _merged(before, delta)
        self._news.set()
        if delta.finish is None:
            return False
        self._open.discard(delta.index)
        if not self._open:
            self._close()
        return True

    def lose(self) -> None:
        """The engine is gone: what it delivered can still be fetched, then the consumer is told."""
        self.lost = True
        self._open.clear()
        self._close()
        self._news.set()

    def _close(self) -> None:
        # The count is remembered for a while, what was made of the request is not.
        self._watcher = None
        self._closed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._pending:
            if self.lost:
                raise EngineLostError("the engine process ended")
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._pending.pop(next(iter(self._pending)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Desk:
    """All requests that the engine has. Mutable: `_live`, `_recent` (those that ended, oldest first)."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._live: dict[str, Sequences] = {}
        self._recent: OrderedDict[str, Sequences] = OrderedDict()
        self._remembered = remembered

    @property
    def open_count(self) -> int:
        """How many sequences run or wait, over all requests."""
        return sum(sequences.open_count for sequences in self._live.values())

    def live(self, request_id: str) -> Sequences | None:
        """A request that has not ended."""
        return self._live.get(request_id)

    def ended(self, request_id: str) -> Sequences | None:
        """A request that ended not long ago."""
        return self._recent.get(request_id)

    def add(self, sequences: Sequences) -> None:
        self._live[sequences.request_id] = sequences

    def deliver(self, deltas: Iterable[Delta]) -> int:
        """Give each request its deltas, and say how many sequences ended."""
        ended = 0
        for delta in deltas:
            sequences = self._live.get(delta.request_id)
            # A request that is not here was lost with an earlier engine, or never ours; nobody waits for it.
            if sequences is None or not sequences.deliver(delta):
                continue
            ended += 1
            if not sequences.open_count:
                self._retire(sequences)
        return ended

    def lose_all(self) -> int:
        """The engine is gone, and every request with it; say how many."""
        lost = list(self._live.values())
        for sequences in lost:
            sequences.lose()
            self._retire(sequences)
        return len(lost)

    def _retire(self, sequences: Sequences) -> None:
        del self._live[sequences.request_id]
        self._recent.pop(sequences.request_id, None)
        self._recent[sequences.request_id] = sequences
        while len(self._recent) > self._remembered:
            self._recent.popitem(last=False)


def _merged(before: Delta, after: Delta) -> Delta:
    return Delta(
        after.request_id,
        after.index,
        [*before.token_ids, *after.token_ids],
        after.generated,
        after.finish,
        after.error,
        logprobs=[*before.logprobs, *after.logprobs],
        prompt_logprobs=[*before.prompt_logprobs, *after.prompt_logprobs],
        # Each is told once.
        cached_tokens=before.cached_tokens or after.cached_tokens,
        embedding=before.embedding or after.embedding,
        waited_us=before.waited_us or after.waited_us,
    )
