import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from sqlalchemy import event, text

from proxy.settings import Database as DatabaseSettings
from proxy.store.database import Database, StorageError, StorageRejectedError, open_database
from proxy.store.writer import MAX_BATCH, MAX_QUEUE, Writer

R = TypeVar("R")


class FakeDatabase:
    """Commits into a list of batches, each a list of records. `open` holds commits up while it is clear; `faults` are
    raised, one for each commit, before it.
    """

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.faults: list[Exception | None] = []
        self.open = asyncio.Event()
        self.open.set()
        self.busy = asyncio.Event()

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[Any]:
        batch: list[Any] = []
        self.busy.set()
        await self.open.wait()
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        yield batch
        self.batches.append(batch)

    async def transact(self, work: Callable[[Any], Coroutine[Any, Any, R]]) -> R:
        async with self.write() as batch:
            return await work(batch)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield


class Observed:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.failures: list[tuple[str, int]] = []

    def committed(self, seconds: float, operations: int) -> None:
        self.sizes.append(operations)

    def failed(self, error: Exception, operations: int) -> None:
        self.failures.append((str(error), operations))


class Pauses:
    """Waits that take no time, and are remembered."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)


async def note(connection: Any, records: Sequence[object]) -> None:
    if "bad" in records:
        raise StorageRejectedError("bad")
    connection.extend(records)


async def note_together(connection: Any, records: Sequence[object]) -> None:
    connection.append(list(records))


@pytest.fixture
def database() -> FakeDatabase:
    return FakeDatabase()


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
async def writer(database: FakeDatabase, clock: Any, observed: Observed, pauses: Pauses) -> AsyncIterator[Writer]:
    async with Writer(database, clock, observed, drain_s=0.02, pause=pauses) as writer:
        yield writer
        database.open.set()


async def held_up(database: FakeDatabase, writer: Writer) -> asyncio.Future[None]:
    """An operation whose commit is under way and does not end before `database.open` is set."""
    database.open.clear()
    first = writer.submit(note, "first")
    await database.busy.wait()
    return first


async def outcomes(*futures: asyncio.Future[None]) -> list[str | None]:
    """Of each future, the text of its error."""
    await asyncio.wait(futures)
    return [None if (error := future.exception()) is None else str(error) for future in futures]


async def test_what_is_submitted_during_a_commit_makes_the_next_one(
    database: FakeDatabase, writer: Writer, observed: Observed
) -> None:
    first = await held_up(database, writer)
    others = [writer.submit(note, number) for number in range(3)]
    assert not first.done()
    database.open.set()
    assert await outcomes(first, *others) == [None] * 4
    assert database.batches == [["first"], [0, 1, 2]]
    assert observed.sizes == [1, 3]


async def test_what_is_patient_goes_with_the_next_commit(
    database: FakeDatabase, writer: Writer, observed: Observed
) -> None:
    first = await held_up(database, writer)
    patient = writer.submit(note, "patient", patience_s=3600)
    database.open.set()
    await first
    for _ in range(5):
        await asyncio.sleep(0)
    assert not patient.done()
    await writer.submit(note, "second")
    assert patient.done()
    assert database.batches == [["first"], ["patient", "second"]]


async def test_what_is_patient_waits_for_no_other_for_ever(database: FakeDatabase, writer: Writer) -> None:
    await writer.submit(note, "patient", patience_s=0.05)
    assert database.batches == [["patient"]]


async def test_who_has_less_patience_is_not_kept_by_who_has_more(database: FakeDatabase, writer: Writer) -> None:
    patient = writer.submit(note, "patient", patience_s=3600)
    await writer.submit(note, "less", patience_s=0.001)
    assert patient.done()
    last = writer.submit(note, "last", patience_s=0.001)
    _ = writer.submit(note, "patient again", patience_s=3600)
    await last
    assert database.batches == [["patient", "less"], ["last", "patient again"]]


async def test_what_is_patient_is_written_before_the_end(database: FakeDatabase, clock: Any) -> None:
    async with Writer(database, clock) as writer:
        patient = writer.submit(note, "patient", patience_s=0.05)
    assert patient.done()
    assert database.batches == [["patient"]]


async def test_a_batch_is_bounded(database: FakeDatabase, writer: Writer, observed: Observed) -> None:
    await held_up(database, writer)
    others = [writer.submit(note, number) for number in range(MAX_BATCH + 44)]
    database.open.set()
    await asyncio.gather(*others)
    assert observed.sizes == [1, MAX_BATCH, 44]


async def test_operations_of_a_kind_are_applied_together_and_all_in_order(
    database: FakeDatabase, writer: Writer
) -> None:
    await held_up(database, writer)
    kinds = (note_together, note_together, note, note_together, note_together)
    others = [writer.submit(kind, number) for number, kind in enumerate(kinds)]
    database.open.set()
    await asyncio.gather(*others)
    assert database.batches[1] == [[0, 1], 2, [3, 4]]


async def test_a_bad_operation_fails_alone(database: FakeDatabase, writer: Writer, observed: Observed) -> None:
    await held_up(database, writer)
    others = [writer.submit(note, record) for record in ("a", "bad", "b")]
    database.open.set()
    assert await outcomes(*others) == [None, "bad", None]
    assert database.batches == [["first"], ["a"], ["b"]]
    assert observed.failures == [("bad", 3), ("bad", 1)]


async def test_a_bad_operation_is_not_tried_again_even_if_it_is_retained(writer: Writer, pauses: Pauses) -> None:
    assert await outcomes(writer.submit(note, "bad", retained=True)) == ["bad"]
    assert pauses.taken == []


async def test_what_an_operation_raises_reaches_its_caller_as_it_is(writer: Writer) -> None:
    async def overflow(connection: Any, records: Sequence[object]) -> None:
        raise OverflowError("too large")

    with pytest.raises(OverflowError, match="too large"):
        await writer.submit(overflow, None)
    await writer.submit(note, "still writing")


async def test_when_storage_fails_all_that_waits_fails_at_once_but_the_retained(
    database: FakeDatabase, writer: Writer, pauses: Pauses
) -> None:
    await held_up(database, writer)
    database.faults = [None, StorageError("disk full"), StorageError("disk full")]
    others = [writer.submit(note, n, retained=n % 2 == 0) for n in range(MAX_BATCH + 4)]
    database.open.set()
    assert await outcomes(*others[1::2]) == ["disk full"] * (MAX_BATCH // 2 + 2)
    assert await outcomes(*others[::2]) == [None] * (MAX_BATCH // 2 + 2)
    assert database.batches[1] == list(range(0, MAX_BATCH + 4, 2))
    assert pauses.taken == [0.05, 0.1]


async def test_the_waits_between_retries_grow_to_half_a_second_and_begin_anew_after_a_success(
    database: FakeDatabase, writer: Writer, pauses: Pauses
) -> None:
    for failures in (6, 2):
        database.faults = [StorageError("locked")] * failures
        await writer.submit(note, failures, retained=True)
    assert pauses.taken == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.05, 0.1]


async def test_a_storage_that_fails_while_a_culprit_is_sought_keeps_the_retained_in_order(
    database: FakeDatabase, writer: Writer
) -> None:
    await held_up(database, writer)
    database.faults = [None, None, None, None, StorageError("disk full")]
    retained = [writer.submit(note, record, retained=True) for record in ("a", "bad", "b", "c")]
    refused = writer.submit(note, "d")
    database.open.set()
    assert await outcomes(*retained, refused) == [None, "bad", None, None, "disk full"]
    assert database.batches == [["first"], ["a"], ["b", "c"]]


async def test_a_commit_that_seemed_to_fail_is_run_again(database: FakeDatabase, writer: Writer) -> None:
    class Ambiguous(FakeDatabase):
        @contextlib.asynccontextmanager
        async def write(self) -> AsyncIterator[Any]:
            async with super().write() as batch:
                yield batch
            if len(self.batches) == 1:
                raise StorageError("connection lost")

    ambiguous = Ambiguous()
    writer._database = ambiguous
    await writer.submit(note, "a", retained=True)
    assert ambiguous.batches == [["a"], ["a"]]


async def test_a_full_queue_takes_only_what_is_retained(database: FakeDatabase, writer: Writer) -> None:
    await held_up(database, writer)
    taken = [writer.submit(note, number) for number in range(MAX_QUEUE)]
    late, retained = writer.submit(note, "late"), writer.submit(note, "retained", retained=True)
    assert await outcomes(late) == [f"{MAX_QUEUE} operations wait for the database already."]
    database.open.set()
    assert set(await outcomes(*taken, retained)) == {None}


async def test_depth_and_lag_are_those_of_what_is_not_on_disk(
    database: FakeDatabase, writer: Writer, clock: Any
) -> None:
    assert (writer.depth, writer.lag_s) == (0, 0.0)
    first = await held_up(database, writer)
    clock.monotonic_s += 3
    second = writer.submit(note, "second")
    clock.monotonic_s += 1
    assert (writer.depth, writer.lag_s) == (2, 4.0)
    database.open.set()
    await asyncio.gather(first, second)
    assert (writer.depth, writer.lag_s) == (0, 0.0)


async def test_a_database_is_away_from_when_it_first_failed_until_it_works(
    database: FakeDatabase, writer: Writer, clock: Any
) -> None:
    await writer.submit(note, "works")
    clock.monotonic_s += 3
    assert writer.away_s == 0.0
    database.faults = [StorageError("it is gone"), StorageError("it is gone")]
    for away_s in (0.0, 1.0):
        await outcomes(writer.submit(note, "refused"))
        # Nothing waits, and nothing can be written.
        assert (writer.depth, writer.lag_s, writer.away_s) == (0, 0.0, away_s)
        clock.monotonic_s += 1
    await writer.submit(note, "works")
    assert writer.away_s == 0.0


async def test_reads_tell_that_a_database_is_away_and_back(on_sqlite: DatabaseSettings, clock: Any) -> None:
    async with open_database(on_sqlite) as database, Writer(database, clock) as writer:
        with pytest.raises(StorageError):
            await writer.read(text("SELECT * FROM nowhere"))
        clock.monotonic_s += 3
        assert writer.away_s == 3.0
        await writer.read(text("SELECT 1"))
        assert writer.away_s == 0.0


async def test_a_full_disk_that_is_read_well_is_away(on_sqlite: DatabaseSettings, clock: Any) -> None:
    async def full(_connection: Any, _records: Sequence[object]) -> None:
        raise StorageError("database or disk is full")

    async with open_database(on_sqlite) as database, Writer(database, clock) as writer:
        await outcomes(writer.submit(full, "a row"))
        clock.monotonic_s += 3
        await writer.read(text("SELECT 1"))
        assert writer.away_s == 3.0


async def test_an_operation_that_is_rejected_says_nothing_of_the_database(writer: Writer, clock: Any) -> None:
    clock.monotonic_s += 3
    await outcomes(writer.submit(note, "bad"))
    assert writer.away_s == 0.0


async def test_a_caller_that_gave_up_takes_nothing_back(database: FakeDatabase, writer: Writer) -> None:
    await held_up(database, writer)
    given_up, other = writer.submit(note, "given up"), writer.submit(note, "other")
    given_up.cancel()
    database.open.set()
    await other
    assert database.batches[1] == ["given up", "other"]


async def test_a_dropped_future_that_fails_is_no_unhandled_error(writer: Writer) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    bad = writer.submit(note, "bad")
    await writer.submit(note, "good")
    assert bad.done()
    del bad
    gc.collect()
    assert unhandled == []


async def test_a_loop_that_dies_leaves_nobody_waiting_and_hides_nothing(database: FakeDatabase, clock: Any) -> None:
    class Broken(Observed):
        def committed(self, seconds: float, operations: int) -> None:
            raise RuntimeError("a bug")

    async def use() -> None:
        async with Writer(database, clock, Broken()) as writer:
            assert await outcomes(writer.submit(note, "a")) == ["The server stopped writing."]
            assert await outcomes(writer.submit(note, "b")) == ["The server stopped writing."]

    with pytest.raises(RuntimeError, match="a bug"):
        await use()


async def test_leaving_writes_what_is_queued(database: FakeDatabase, clock: Any) -> None:
    async with Writer(database, clock) as writer:
        queued = [writer.submit(note, number) for number in range(MAX_BATCH + 1)]
    assert set(await outcomes(*queued)) == {None}
    assert await outcomes(writer.submit(note, "late")) == ["The server stopped writing."]
    with pytest.raises(StorageError, match="stopped"):
        await writer.read(text("SELECT 1"))


async def test_leaving_a_dead_storage_does_not_wait_for_ever(
    database: FakeDatabase, clock: Any, observed: Observed
) -> None:
    database.open.clear()
    async with Writer(database, clock, observed, drain_s=0.01) as writer:
        waiting = [writer.submit(note, number, retained=True) for number in range(2)]
    assert await outcomes(*waiting) == ["The server stopped writing."] * 2


async def test_an_idle_writer_is_left_at_once(database: FakeDatabase, clock: Any) -> None:
    async with Writer(database, clock, drain_s=60):
        await asyncio.sleep(0)


async def test_a_cancelled_read_does_not_cost_the_connection(on_sqlite: DatabaseSettings, clock: Any) -> None:
    async with open_database(on_sqlite) as database, Writer(database, clock) as writer:
        made = count_connections(database)
        reading = asyncio.create_task(writer.read(text("SELECT 1")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert [tuple(row) for row in await writer.read(text("SELECT 2"))] == [(2,)]
    assert made == []


async def test_a_read_that_fails_says_so(settings: DatabaseSettings, clock: Any) -> None:
    async with open_database(settings) as database, Writer(database, clock) as writer:
        with pytest.raises(StorageError, match=r"no such table|does not exist"):
            await writer.read(text("SELECT * FROM nowhere"))


def count_connections(database: Database) -> list[object]:
    """A list that grows with each connection from now on."""
    made: list[object] = []
    event.listen(database._reading.sync_engine, "connect", lambda connection, _record: made.append(connection))
    return made
