"""The promise of the ledger: whatever is submitted in whatever order, and wherever the process dies, the database holds
what a plain replay of some first part of it gives, with nothing lost that was acknowledged, and the laws hold.
"""

import asyncio
import contextlib
import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import select

from proxy.settings import Database as DatabaseSettings
from proxy.store.accounts import Account, Accounts
from proxy.store.database import open_database
from proxy.store.keys import Keys
from proxy.store.ledger import Ledger, Standing
from proxy.store.posting import Booked, Posting, Reserved, Settled, Shrunk, Voided
from proxy.store.tables import ledger as table
from proxy.store.tables import quota
from proxy.store.writer import Writer

KEYS = ("key_a", "key_b")
PERIODS = ("2026-10", "2026-11")
REQUESTS = st.integers(0, 5).map(lambda number: f"req_{number}")


@dataclass
class Line:
    """A ledger row, as the reference keeps it."""

    at: tuple[str, str]
    est_tokens: int
    state: str = "reserved"
    charged: int = 0


def replay(operations: list[Any]) -> dict[str, Line]:
    """The reference: one operation after the other on a dict."""
    lines: dict[str, Line] = {}
    for operation in operations:
        line = lines.get(operation.request_id)
        match operation:
            case Reserved(entry=entry):
                lines.setdefault(entry.request_id, Line((entry.key_id, entry.period), entry.est_tokens))
            case Shrunk() if line and line.state == "reserved":
                line.est_tokens = min(line.est_tokens, operation.est_tokens)
            case Settled() if line and line.state == "reserved":
                line.state = "forced" if operation.forced else "settled"
                line.charged = operation.prompt_tokens + operation.completion_tokens
            case Voided() if line and line.state == "reserved":
                line.state = "void"
    return lines


def standings(lines: dict[str, Line]) -> dict[tuple[str, str], Standing]:
    found = {}
    for at in itertools.product(KEYS, PERIODS):
        mine = [line for line in lines.values() if line.at == at]
        count = Counter(line.state for line in mine)
        found[at] = Standing(
            settled_tokens=sum(line.charged for line in mine),
            reserved_tokens=sum(line.est_tokens for line in mine if line.state == "reserved"),
            settled_requests=count["settled"] + count["forced"],
            reserved_requests=count["reserved"],
        )
    return found


class Books(RuleBasedStateMachine):
    """`submitted` in order, of which the first `acknowledged` are known to be on disk."""

    def __init__(self, folder: Path, template: Path, make: Any, clock: Any) -> None:
        super().__init__()
        self.make = make
        self.clock = clock
        self.runner = asyncio.Runner()
        shutil.copy(template, folder / "books.db")
        self.settings = DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/books.db", synchronous="NORMAL")
        self.submitted: list[Any] = []
        self.futures: list[asyncio.Future[None]] = []
        self.acknowledged = 0
        self.boots = 0

    @initialize()
    def begin(self) -> None:
        self.runner.run(self._open())
        self.runner.run(self._populate())

    async def _open(self) -> None:
        self.boots += 1
        self.others = set(threading.enumerate())
        self.stack = contextlib.AsyncExitStack()
        database = await self.stack.enter_async_context(open_database(self.settings))
        self.writer = await self.stack.enter_async_context(Writer(database, self.clock))
        self.ledger = Ledger(self.writer, f"boot_{self.boots}")

    async def _populate(self) -> None:
        await Accounts(self.writer).create(Account("acc", "acc", self.make.now))
        for key_id in KEYS:
            await Keys(self.writer).create(self.make.key(key_id))

    def _submit(self, submit: Any, record: Any, *arguments: Any) -> None:
        async def submitting() -> asyncio.Future[None]:
            future: asyncio.Future[None] = submit(*arguments)
            return future

        self.futures.append(self.runner.run(submitting()))
        self.submitted.append(record)

    @rule(request=REQUESTS, key_id=st.sampled_from(KEYS), period=st.sampled_from(PERIODS), tokens=st.integers(60, 99))
    def reserve(self, request: str, key_id: str, period: str, tokens: int) -> None:
        entry = self.make.entry(request, tokens, key_id, period=period)
        self._submit(self.ledger.reserve, Reserved(entry, "any"), entry)

    @rule(request=REQUESTS, tokens=st.integers(50, 110))
    def shrink(self, request: str, tokens: int) -> None:
        self._submit(self.ledger.shrink, Shrunk(request, tokens), request, tokens)

    @rule(request=REQUESTS, prompt=st.integers(0, 20), completion=st.integers(0, 30), forced=st.booleans())
    def settle(self, request: str, prompt: int, completion: int, forced: bool) -> None:
        record = self.make.settled(request, prompt, completion, forced=forced, reason="client_gone")
        self._submit(self.ledger.settle, record, record)

    @rule(request=REQUESTS)
    def void(self, request: str) -> None:
        record = self.make.voided(request)
        self._submit(self.ledger.void, record, record)

    @rule()
    def wait(self) -> None:
        async def all_done() -> None:
            # Of what a crash left on disk nobody need have been told.
            await asyncio.gather(*self.futures[self.acknowledged :])

        self.runner.run(all_done())
        self.acknowledged = len(self.submitted)
        self._compare([len(self.submitted)])

    @rule(turns=st.integers(0, 12))
    def crash(self, turns: int) -> None:
        """Die after some turns of the loop: the writer has no time to drain."""
        self.runner.run(self._die(turns))
        while self.acknowledged < len(self.futures) and succeeded(self.futures[self.acknowledged]):
            self.acknowledged += 1
        self.runner.run(self._open())
        kept = self._compare(range(self.acknowledged, len(self.submitted) + 1))
        del self.submitted[kept:], self.futures[kept:]
        self.acknowledged = kept

    async def _die(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        self.writer._drain_s = 0
        await self.stack.aclose()
        # A commit that was cancelled may be under way in the connection's thread, and must not land after the look.
        for thread in set(threading.enumerate()) - self.others:
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, 20)
                assert not thread.is_alive()

    def _compare(self, lengths: Any) -> int:
        """How many of the operations are on disk: one of `lengths`."""
        assert self.runner.run(self.ledger.check()) == []
        found = self.runner.run(self._found())
        for length in lengths:
            lines = replay(self.submitted[:length])
            if found == ({name: vars(line) for name, line in lines.items()}, standings(lines)):
                return int(length)
        raise AssertionError(f"no first part of {self.submitted} gives {found}")

    async def _found(self) -> tuple[dict[str, Any], dict[tuple[str, str], Standing]]:
        columns = (table.c.key_id, table.c.period, table.c.est_tokens, table.c.state)
        charged = (table.c.prompt_tokens + table.c.completion_tokens).label("charged")
        rows = await self.writer.read(select(table.c.request_id, *columns, charged))
        lines = {
            row.request_id: vars(Line((row.key_id, row.period), row.est_tokens, row.state, row.charged)) for row in rows
        }
        counters = [quota.c[field.name] for field in fields(Standing)]
        stands = await self.writer.read(select(quota.c.key_id, quota.c.period, *counters))
        none = {at: Standing() for at in itertools.product(KEYS, PERIODS)}
        return lines, none | {(key_id, period): Standing(*rest) for key_id, period, *rest in stands}

    def teardown(self) -> None:
        if self.boots:
            self.wait()
            self.runner.run(self.stack.aclose())
        self.runner.close()


def succeeded(future: asyncio.Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def test_the_books_are_a_replay_of_what_was_submitted(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, make: Any, clock: Any
) -> None:
    run_state_machine_as_test(
        lambda: Books(tmp_path_factory.mktemp("books"), sqlite_template, make, clock),
        # Shrinking a failure would open the database hundreds of times.
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_how_operations_fall_into_batches_makes_no_difference(make: Any, data: st.DataObject) -> None:
    operations = data.draw(st.lists(operations_on(make), max_size=40))
    size = data.draw(st.integers(1, 40))
    lines: dict[str, Line] = {}
    totals: dict[tuple[str, str], Counter[str]] = {at: Counter() for at in itertools.product(KEYS, PERIODS)}
    for batch in (operations[start : start + size] for start in range(0, len(operations), size)):
        write(batch, lines, totals)
    assert lines == replay(operations)
    counted = {at: Standing(**{field.name: totals[at][field.name] for field in fields(Standing)}) for at in totals}
    assert counted == standings(lines)


def operations_on(make: Any) -> st.SearchStrategy[Any]:
    entries = st.builds(
        lambda request, tokens, key_id, period: Reserved(make.entry(request, tokens, key_id, period=period), "boot"),
        REQUESTS,
        st.integers(60, 99),
        st.sampled_from(KEYS),
        st.sampled_from(PERIODS),
    )
    ends = st.builds(
        lambda request, prompt, completion, forced: make.settled(request, prompt, completion, forced=forced),
        REQUESTS,
        st.integers(0, 20),
        st.integers(0, 30),
        st.booleans(),
    )
    return entries | ends | st.builds(Shrunk, REQUESTS, st.integers(50, 110)) | REQUESTS.map(make.voided)


def write(batch: Iterable[Any], lines: dict[str, Line], totals: dict[tuple[str, str], Counter[str]]) -> None:
    """What the ledger's SQL does with a posting, in its order, on dicts."""
    posting = Posting({name: Booked(line.state, line.est_tokens, *line.at, "acc") for name, line in lines.items()})
    for operation in batch:
        posting.post(operation)
    for reserved in posting.reserved:
        entry = reserved.entry
        assert entry.request_id not in lines
        lines[entry.request_id] = Line((entry.key_id, entry.period), entry.est_tokens)
    for request_id, est_tokens in posting.shrunk.items():
        lines[request_id].est_tokens = est_tokens
    for end in posting.ended:
        line = lines[end.request_id]
        assert line.state == "reserved"
        line.state = end.state
        line.charged = end.prompt_tokens + end.completion_tokens if isinstance(end, Settled) else 0
    for at, moved in posting.moves.items():
        totals[at].update(moved)
