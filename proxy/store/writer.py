"""Group commit: what was submitted during the last commit makes the next one, with no timer. Knows no table.

A batch that fails by the fault of one operation is tried again one by one, so that only the culprit fails. When the
storage itself is at fault, operations fail with StorageError at once, but the retained ones (ends of requests that ran)
are tried again until they are on disk.
"""

import asyncio
import functools
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeVar

import msgspec
from sqlalchemy import Executable, Row
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.clock import Clock
from proxy.store.database import StorageError, StorageRejectedError

MAX_BATCH: Final = 256
# Beyond this the storage is not keeping up, and what is not retained is refused at once. Retained operations need no
# bound of their own: each ends a request that was let in by one that is not retained.
MAX_QUEUE: Final = 16_384
FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 0.5
STOPPED: Final = "The server stopped writing."


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation of a batch, by its place, that changes nothing, and the error that its caller gets. The others are
    committed all the same.
    """

    place: int
    error: Exception


Apply = Callable[[AsyncConnection, Sequence[R]], Awaitable[Sequence[Refusal] | None]]


async def each(
    connection: AsyncConnection,
    records: Sequence[R],
    apply_one: Callable[[AsyncConnection, R], Awaitable[None]],
    refusals: tuple[type[Exception], ...],
) -> list[Refusal]:
    """A batch of operations that have nothing to do with each other. One that raises a refusal has written nothing."""
    refused: list[Refusal] = []
    for place, record in enumerate(records):
        try:
            await apply_one(connection, record)
        except refusals as exc:
            refused.append(Refusal(place, exc))
    return refused


class Transactions(Protocol):
    """What the writer needs of a database; see `proxy.store.database.Database`."""

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]: ...
    async def transact(self, work: Callable[[AsyncConnection], Coroutine[Any, Any, R]]) -> R: ...


class Observer(Protocol):
    """Who is told of commits: the metrics and the log."""

    def committed(self, seconds: float, operations: int) -> None: ...

    def failed(self, error: Exception, operations: int) -> None:
        """A commit of so many operations failed. Told for every attempt, the later ones of retained ones too."""


class Unobserved:
    """An observer for tools that have no metrics: the failures reach their caller as exceptions."""

    def committed(self, seconds: float, operations: int) -> None: ...
    def failed(self, error: Exception, operations: int) -> None: ...


class _Pending(msgspec.Struct, frozen=True, eq=False):
    """One operation on its way to the disk, since when, and who waits for it."""

    apply: Apply[Any]
    record: object
    retained: bool
    since_s: float
    done: asyncio.Future[None]

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            # Looked at, so that a dropped one's error is no news: the observer has it.
            self.done.exception()


class Writer:
    """The only one that writes. Use it as `async with`: leaving it writes what is queued, for at most `drain_s`.

    Mutable: `_queue` (what is not yet tried, oldest first), `_batch` (what is being committed), `_wake` (set when there
    is something to do at once), `_timer` (sets it when the first of the patient ones has waited enough), `_closing`,
    `_task` (the loop), `_reads` (those under way) and `_failing_s` (since when reads have failed, and commits).
    """

    def __init__(
        self,
        database: Transactions,
        clock: Clock,
        observer: Observer | None = None,
        *,
        drain_s: float = 5.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._clock = clock
        self._observer = observer or Unobserved()
        self._drain_s = drain_s
        self._pause = pause
        self._queue: deque[_Pending] = deque()
        self._batch: list[_Pending] = []
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[Sequence[Row[Any]]]] = set()
        self._failing_s: dict[Literal["read", "commit"], float] = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="writer")
        self._task.add_done_callback(self._stopped)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake.set()
        tasks = [task for task in (self._task, *self._reads) if task is not None]
        try:
            await asyncio.wait(tasks, timeout=self._drain_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._task is not None and not self._task.cancelled():
            self._task.result()

    @property
    def depth(self) -> int:
        """How many operations are not on disk yet."""
        return len(self._batch) + len(self._queue)

    @property
    def lag_s(self) -> float:
        """The age of the oldest operation that is not on disk yet."""
        oldest = next(itertools.chain(self._batch, self._queue), None)
        return 0.0 if oldest is None else self._clock.monotonic() - oldest.since_s

    @property
    def away_s(self) -> float:
        """For how long the database has failed at reads or at commits: a full disk is read well. 0 if it does neither.

        The queue does not tell: what is not retained fails at once and leaves it.
        """
        return self._clock.monotonic() - min(self._failing_s.values()) if self._failing_s else 0.0

    def submit(
        self, apply: Apply[R], record: R, *, retained: bool = False, patience_s: float = 0.0
    ) -> asyncio.Future[None]:
        """Queue an operation; the future is done when it is on disk.

        `apply` gets the records of all operations beside each other that share it, in order, and must bear being run
        again after a commit that failed: one may have reached the disk all the same. The future fails with StorageError
        or with what `apply` raised; it may be dropped, as the observer has been told. Or it fails with the error of a
        refusal that `apply` gave: that is a decision and no failure, and the observer is not told.

        One that has patience makes no commit of its own before that is over, but goes with the next.
        """
        done = asyncio.get_running_loop().create_future()
        pending = _Pending(apply, record, retained, self._clock.monotonic(), done)
        if self._closing:
            pending.fail(StorageError(STOPPED))
        elif not retained and len(self._queue) >= MAX_QUEUE:
            pending.fail(StorageError(f"{MAX_QUEUE} operations wait for the database already."))
        else:
            self._queue.append(pending)
            self._wake_within(patience_s)
        return done

    def _wake_within(self, patience_s: float) -> None:
        if not patience_s:
            self._wake.set()
            return
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + patience_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(patience_s, self._wake.set)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def read(self, statement: Executable) -> Sequence[Row[Any]]:
        """Run a query between two batches. Raises StorageError.

        The query is a task of its own, because SQLAlchemy throws the connection away when a statement on it is
        cancelled, and there is only this one.
        """
        if self._closing:
            raise StorageError(STOPPED)
        task = asyncio.create_task(self._read(statement))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def _read(self, statement: Executable) -> Sequence[Row[Any]]:
        try:
            async with self._database.read() as connection:
                found = (await connection.execute(statement)).all()
        except StorageError as exc:
            self._note("read", exc)
            raise
        self._note("read", None)
        return found

    async def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while self._queue or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            self._stop_timer()
            self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            if self._queue or self._closing:
                self._wake.set()
            if not self._batch or await self._round():
                retry_s = FIRST_RETRY_S
            else:
                self._wake.set()
                await self._pause(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)

    def _stopped(self, _task: asyncio.Task[None]) -> None:
        """Nobody may wait for a loop that is over, however it ended."""
        self._closing = True
        for pending in (*self._batch, *self._queue):
            pending.fail(StorageError(STOPPED))

    async def _round(self) -> bool:
        """Commit the batch, whole or one by one. Whether the storage works."""
        error = await self._commit(self._batch)
        if error is not None and _blames_one(error) and len(self._batch) > 1:
            error = await self._one_by_one()
        if error is not None and not _blames_one(error):
            self._refuse(error)
            return False
        for pending in self._batch:
            pending.succeed() if error is None else pending.fail(error)
        self._batch = []
        return True

    async def _one_by_one(self) -> Exception | None:
        """The storage's error, if it is at fault in the end; the batch is then what is left of it."""
        while self._batch:
            error = await self._commit(self._batch[:1])
            if error is not None and not _blames_one(error):
                return error
            pending = self._batch.pop(0)
            pending.succeed() if error is None else pending.fail(error)
        return None

    async def _commit(self, batch: Sequence[_Pending]) -> Exception | None:
        began_s = self._clock.monotonic()
        try:
            refused = await self._database.transact(functools.partial(_apply, batch))
        except Exception as exc:  # noqa: BLE001  whatever an operation raises is its caller's to handle
            self._note("commit", exc)
            self._observer.failed(exc, len(batch))
            return exc
        self._note("commit", None)
        self._observer.committed(self._clock.monotonic() - began_s, len(batch))
        for pending, error in refused:
            pending.fail(error)
        return None

    def _note(self, what: Literal["read", "commit"], error: Exception | None) -> None:
        """The database was asked for something, and did it or not. That one operation was at fault says nothing."""
        if error is None:
            self._failing_s.pop(what, None)
        elif not _blames_one(error):
            self._failing_s.setdefault(what, self._clock.monotonic())

    def _refuse(self, error: Exception) -> None:
        """The storage does not work: keep what is retained, in order; the rest must not wait for it."""
        waiting = (*self._batch, *self._queue)
        self._batch = []
        self._queue = deque(pending for pending in waiting if pending.retained)
        for pending in waiting:
            if not pending.retained:
                pending.fail(error)


async def _apply(batch: Sequence[_Pending], connection: AsyncConnection) -> list[tuple[_Pending, Exception]]:
    """Apply a batch, and say what of it is refused. Runs in the transaction, wherever that does."""
    refused: list[tuple[_Pending, Exception]] = []
    for apply, grouped in itertools.groupby(batch, key=lambda pending: pending.apply):
        group = list(grouped)
        refusals = await apply(connection, [pending.record for pending in group])
        refused.extend((group[refusal.place], refusal.error) for refusal in refusals or ())
    return refused


def _blames_one(error: Exception) -> bool:
    """Whether an operation is at fault, and not the storage."""
    return isinstance(error, StorageRejectedError) or not isinstance(error, StorageError)


def _retrieve(done: asyncio.Future[Any]) -> None:
    """A dropped future's error is no news: the observer has it."""
    if not done.cancelled():
        done.exception()
