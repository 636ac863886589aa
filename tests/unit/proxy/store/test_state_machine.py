"""The promise of the ledger: whatever is done in whatever order, and wherever a process dies, the database holds what a
plain model in memory holds, nothing that was acknowledged is lost, no quota is exceeded, and the laws are kept.

On Postgres two processes do it at once. TOLLHOUSE_STATE_EXAMPLES=500 makes it as many lives; the default is 8.
"""

import asyncio
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import select, text

from proxy.settings import Database as DatabaseSettings
from proxy.store.accounts import Account, Accounts
from proxy.store.address import file_of
from proxy.store.boots import Boots
from proxy.store.database import StorageRejectedError, open_database
from proxy.store.keys import Keys
from proxy.store.ledger import Ledger, Standing
from proxy.store.posting import Operation, Posting, Reserved, Settled, Shrunk, State, Voided
from proxy.store.standing import Monthly, QuotaExceededError
from proxy.store.tables import ledger as table
from proxy.store.tables import quota
from proxy.store.writer import Writer
from tests.unit.proxy.store.conftest import FakeClock, Records

EXAMPLES = int(os.environ.get("TOLLHOUSE_STATE_EXAMPLES", "8"))
STEPS = 30
KEYS = ("key_a", "key_b")
MONTHS = ("2026-10", "2026-11", "2026-12")
# A few requests fill each of them.
LIMITS = Monthly(monthly_requests=4, monthly_tokens=200, account_monthly_requests=6, account_monthly_tokens=300)
NAMES = st.integers(0, 11).map(lambda number: f"req_{number}")
# Some sums of them are the limits to the token, and some one more.
TOKENS = st.sampled_from([50, 99, 100, 101])
make = Records()


@dataclass
class Line:
    """A ledger row, as the model keeps it."""

    key_id: str
    period: str
    est_tokens: int
    boot_id: str
    state: str = "reserved"
    charged: int = 0

    @property
    def holds(self) -> int:
        return self.est_tokens if self.state == "reserved" else self.charged


class Model:
    """What the books hold, by a plain reading of the rules. Mutable: `lines`."""

    def __init__(self, lines: dict[str, Line] | None = None) -> None:
        self.lines = lines or {}

    def copy(self) -> "Model":
        return Model({name: Line(**vars(line)) for name, line in self.lines.items()})

    def apply(self, operation: Operation) -> str | None:
        """The rule that a reservation exceeds, if it does."""
        line = self.lines.get(operation.request_id)
        is_open = line is not None and line.state == "reserved"
        match operation:
            case Reserved():
                return None if line else self._reserve(operation)
            case Shrunk() if line and is_open:
                line.est_tokens = min(line.est_tokens, operation.est_tokens)
            case Settled() if line and is_open:
                line.state = "forced" if operation.forced else "settled"
                line.charged = operation.prompt_tokens + operation.completion_tokens
            case Voided() if line and is_open:
                line.state = "void"
        return None

    def _reserve(self, reserved: Reserved) -> str | None:
        entry = reserved.entry
        of_month = [line for line in self.lines.values() if line.period == entry.period and line.state != "void"]
        held = sum(line.holds for line in of_month)
        of_key = [line for line in of_month if line.key_id == entry.key_id]
        for rule_name, limit, used in (
            ("monthly_requests", LIMITS.monthly_requests, len(of_key) + 1),
            ("monthly_tokens", LIMITS.monthly_tokens, sum(line.holds for line in of_key) + entry.est_tokens),
            ("account_monthly_requests", LIMITS.account_monthly_requests, len(of_month) + 1),
            (
                "account_monthly_tokens",
                LIMITS.account_monthly_tokens,
                held + entry.est_tokens,
            ),
        ):
            if limit is not None and used > limit:
                return rule_name
        self.lines[entry.request_id] = Line(entry.key_id, entry.period, entry.est_tokens, reserved.boot_id)
        return None

    def standings(self) -> dict[tuple[str, str], Standing]:
        found = {}
        for key_id, period in {(line.key_id, line.period) for line in self.lines.values()}:
            mine = [line for line in self.lines.values() if (line.key_id, line.period) == (key_id, period)]
            count = Counter(line.state for line in mine)
            found[key_id, period] = Standing(
                settled_tokens=sum(line.charged for line in mine),
                reserved_tokens=sum(line.est_tokens for line in mine if line.state == "reserved"),
                settled_requests=count["settled"] + count["forced"],
                reserved_requests=count["reserved"],
            )
        return found


class Process:
    """A proxy process, as far as the books know it: its connections, its writer, its boot."""

    def __init__(self, settings: DatabaseSettings, boot_id: str) -> None:
        self.boot_id = boot_id
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()

    async def begin(self) -> None:
        self.database = await self._stack.enter_async_context(open_database(self._settings))
        self.writer = await self._stack.enter_async_context(Writer(self.database, FakeClock()))
        self.ledger = Ledger(self.writer, self.boot_id)
        self.boots = Boots(self.writer, shared=self.database.shared)
        await self.boots.begin(make.boot(self.boot_id))

    def submit(self, operation: Operation) -> "asyncio.Future[None]":
        match operation:
            case Reserved(entry=entry):
                return self.ledger.reserve(entry, (), operation.limits)
            case Shrunk():
                return self.ledger.shrink(operation.request_id, operation.est_tokens)
            case Settled():
                return self.ledger.settle(operation)
            case Voided():
                return self.ledger.void(operation)

    async def die(self) -> None:
        """The writer has no time to drain."""
        self.writer._drain_s = 0
        await self._stack.aclose()

    async def close(self) -> None:
        await self._stack.aclose()


class Books(RuleBasedStateMachine):
    """The processes, and the model of what they did."""

    def __init__(self, settings: DatabaseSettings, processes: int) -> None:
        super().__init__()
        self.settings = settings
        self.runner = asyncio.Runner()
        self.model = Model()
        self.processes: list[Process] = []
        self.count = processes
        self.boots = 0
        self.month = 1
        self.revoked: set[str] = set()

    @initialize()
    def begin(self) -> None:
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        for _ in range(self.count):
            self.processes.append(await self._start())
        writer = self.processes[0].writer
        await Accounts(writer).create(Account("acc", "acc", make.now))
        for key_id in KEYS:
            await Keys(writer).create(make.key(key_id))

    async def _start(self) -> Process:
        self.boots += 1
        process = Process(self.settings, f"boot_{self.boots}")
        await process.begin()
        return process

    def _process(self, which: int) -> Process:
        return self.processes[which % len(self.processes)]

    def _do(self, which: int, operation: Operation) -> None:
        """Do it, wait for it, and look."""

        async def done() -> str | None:
            try:
                await self._process(which).submit(operation)
            except QuotaExceededError as exc:
                return exc.rule
            return None

        expected = self.model.apply(operation)
        assert self.runner.run(done()) == expected
        self.look()

    def _reserved(self, which: int, name: str, key_id: str, tokens: int) -> Reserved:
        entry = make.entry(name, tokens, key_id, period=MONTHS[self.month])
        return Reserved(entry, self._process(which).boot_id, (), LIMITS)

    @rule(which=st.integers(0, 1), name=NAMES, key_id=st.sampled_from(KEYS), tokens=TOKENS)
    def reserve(self, which: int, name: str, key_id: str, tokens: int) -> None:
        """A name that was reserved already is a retry, after a commit that seemed to fail."""
        if key_id not in self.revoked:
            self._do(which, self._reserved(which, name, key_id, tokens))

    @rule(which=st.integers(0, 1), name=NAMES, tokens=st.integers(50, 110))
    def shrink(self, which: int, name: str, tokens: int) -> None:
        self._do(which, Shrunk(name, tokens))

    @rule(which=st.integers(0, 1), name=NAMES, completion=st.integers(0, 50), forced=st.booleans())
    def settle(self, which: int, name: str, completion: int, forced: bool) -> None:
        """Whoever does it, and however late: a row that has ended stays as it is."""
        self._do(which, make.settled(name, 0, completion, forced=forced, reason="client_gone"))

    @rule(which=st.integers(0, 1), name=NAMES)
    def void(self, which: int, name: str) -> None:
        self._do(which, make.voided(name))

    @rule(month=st.integers(0, 2))
    def set_the_clock(self, month: int) -> None:
        """On into the next month, or back into the last one. What runs keeps the month in which it was let in."""
        self.month = month

    @rule(key_id=st.sampled_from(KEYS))
    def revoke(self, key_id: str) -> None:
        """What runs of it ends as it would have."""
        self.revoked.add(key_id)
        self.runner.run(Keys(self.processes[0].writer).revoke(key_id, make.now))
        self.look()

    @rule(
        which=st.integers(0, 1),
        burst=st.lists(st.tuples(st.sampled_from(["reserve", "shrink", "settle", "void"]), NAMES, TOKENS), max_size=8),
        turns=st.integers(0, 12),
    )
    def crash(self, which: int, burst: list[tuple[str, str, int]], turns: int) -> None:
        """A process dies in the middle of what it does; another one begins in its place."""
        operations = [self._operation(which, *drawn) for drawn in burst]
        acknowledged = self.runner.run(self._die(which, operations, turns))
        models = [self.model.copy()]
        for operation in operations:
            models.append(models[-1].copy())
            models[-1].apply(operation)
        found = self.runner.run(self._found())
        kept = [model for model in models[acknowledged:] if seen(model) == found]
        assert kept, f"no first part of {operations} gives {found}"
        self.model = kept[0]
        self.look()

    def _operation(self, which: int, kind: str, name: str, tokens: int) -> Operation:
        match kind:
            case "reserve":
                return self._reserved(which, name, KEYS[tokens % 2], tokens)
            case "shrink":
                return Shrunk(name, tokens)
            case "settle":
                # No more than any reservation here has left.
                settled: Settled = make.settled(name, (tokens - 50) // 2, 9, reason="client_gone")
                return settled
        voided: Voided = make.voided(name)
        return voided

    async def _die(self, which: int, operations: list[Operation], turns: int) -> int:
        """How many of the operations were acknowledged before it died."""
        dying = self._process(which)
        futures = [dying.submit(operation) for operation in operations]
        for _ in range(turns):
            await asyncio.sleep(0)
        acknowledged = next((n for n, future in enumerate(futures) if not decided(future)), len(futures))
        if not dying.database.shared:
            self.settings = await asyncio.to_thread(left_behind, self.settings)
        await dying.die()
        self.processes[which % len(self.processes)] = await self._start()
        return acknowledged

    @rule(which=st.integers(0, 1), known=st.booleans(), completion=st.integers(0, 30))
    def recover(self, which: int, known: bool, completion: int) -> None:
        """Take the dead over, and settle what they left: by the truth, or at the estimate if nobody knows it."""
        orphans = self.runner.run(self._take_over(self._process(which)))
        living = {process.boot_id for process in self.processes}
        left = {
            name for name, line in self.model.lines.items() if line.state == "reserved" and line.boot_id not in living
        }
        assert {entry.request_id for entry in orphans} == left
        for entry in orphans:
            end = (0, completion) if known else (0, entry.est_tokens)
            self._do(which, make.settled(entry.request_id, *end, forced=not known, reason="internal", status=500))
        self.runner.run(self._end_kept(self._process(which)))
        self.look()

    async def _take_over(self, process: Process) -> list[Any]:
        living = {process.boot_id for process in self.processes}
        for boot_id in living:
            await process.boots.beat(boot_id)
        async with process.database.write() as connection:
            if process.database.shared:
                dead = text("UPDATE boot SET seen = seen - interval '1 hour' WHERE NOT (id = ANY(:living))")
                await connection.execute(dead, {"living": list(living)})
        others = [other for other in await process.boots.others(process.boot_id) if other.lapsed]
        assert not {other.id for other in others} & living
        for other in others:
            await process.boots.keep(other, process.boot_id)
        return await process.ledger.open_rows()

    async def _end_kept(self, process: Process) -> None:
        await process.boots.end_kept(process.boot_id, make.now)

    def look(self) -> None:
        """The books are the model, and no law is broken."""
        assert self.runner.run(self._found()) == seen(self.model)
        assert self.runner.run(self._checked()) == []
        for (_, period), standing in self.model.standings().items():
            assert standing.tokens <= (LIMITS.monthly_tokens or 0)
            of_month = [line.holds for line in self.model.lines.values() if line.period == period]
            assert sum(of_month) <= (LIMITS.account_monthly_tokens or 0)

    async def _checked(self) -> list[str]:
        return await self.processes[0].ledger.check()

    async def _found(self) -> Any:
        read = self.processes[0].writer.read
        charged = (table.c.prompt_tokens + table.c.completion_tokens).label("charged")
        columns = (table.c.key_id, table.c.period, table.c.est_tokens, table.c.boot_id, table.c.state, charged)
        rows = {name: tuple(rest) for name, *rest in await read(select(table.c.request_id, *columns))}
        counters = [quota.c[field.name] for field in fields(Standing)]
        found = await read(select(quota.c.key_id, quota.c.period, *counters))
        stands = {(key_id, period): Standing(*rest) for key_id, period, *rest in found}
        return rows, {at: standing for at, standing in stands.items() if standing != Standing()}

    def teardown(self) -> None:
        for process in self.processes:
            self.runner.run(process.close())
        self.runner.close()


def left_behind(settings: DatabaseSettings) -> DatabaseSettings:
    """The files of a SQLite database as they lie there at this moment, in a folder of their own.

    Closing a connection in the middle of a statement is no death: what it would have written may yet be written, or its
    lock stay. Nothing is moved from the log into the file meanwhile, for that it would have to be longer.
    """
    path = file_of(settings)
    copy = path.parent / f"after {path.name}"
    for end in ("", "-wal"):
        if (written := path.with_name(path.name + end)).exists():
            shutil.copyfile(written, copy.with_name(copy.name + end))
    return DatabaseSettings(url=f"sqlite+aiosqlite:///{copy}", synchronous="NORMAL")


def seen(model: Model) -> Any:
    rows = {name: tuple(vars(line).values()) for name, line in model.lines.items()}
    return rows, {at: standing for at, standing in model.standings().items() if standing != Standing()}


def decided(future: "asyncio.Future[None]") -> bool:
    """It is on disk, or it was refused by a decision that is."""
    if not future.done() or future.cancelled():
        return False
    return isinstance(future.exception(), QuotaExceededError | None)


def run(machine: Callable[[], Books], *, examples: int = EXAMPLES, planted: bool = False) -> None:
    run_state_machine_as_test(
        machine,
        # Shrinking a failure would make hundreds of databases.
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=planted,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Callable[[], Books]]:
    with contextlib.ExitStack() as lent:

        def on_sqlite() -> Books:
            path = tmp_path_factory.mktemp("books") / "books.db"
            shutil.copy(sqlite_template, path)
            return Books(DatabaseSettings(url=f"sqlite+aiosqlite:///{path}", synchronous="NORMAL"), 1)

        def on_postgres() -> Books:
            server, template = request.getfixturevalue("postgres"), request.getfixturevalue("postgres_template")
            # The last life's is lent again.
            lent.close()
            name = lent.enter_context(server.lent(template))
            return Books(DatabaseSettings(url=server.url(name), pool_size=2), 2)

        yield on_sqlite if request.param == "sqlite" else on_postgres


@pytest.mark.timeout(120 + 10 * EXAMPLES)
@pytest.mark.parametrize("machine", ["sqlite", "postgres"], indirect=True)
def test_f10_the_books_are_what_was_done_whatever_dies_and_whatever_the_clock_says(
    machine: Callable[[], Books],
) -> None:
    run(machine)


def one_token_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    move = Posting._move

    def off_by_one(self: Posting, row: Any, **counters: int) -> None:
        if "settled_tokens" in counters:
            counters["settled_tokens"] -= 1
        move(self, row, **counters)

    monkeypatch.setattr(Posting, "_move", off_by_one)


def no_quota_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Posting, "_exceeded", lambda _self, _reserved: None)


def a_late_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def post(self: Posting, operation: Operation) -> None:
        row = self._rows.get(operation.request_id)
        if isinstance(operation, Reserved):
            self._reserve(operation)
        elif row is not None and row.state != State.VOID and isinstance(operation, Settled):
            self._end(operation, row)

    monkeypatch.setattr(Posting, "post", post)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("plant", "machine"),
    [
        (one_token_too_few, "sqlite"),
        (one_token_too_few, "postgres"),
        (no_quota_bites, "sqlite"),
        (a_late_end_counts, "sqlite"),
    ],
    indirect=["machine"],
)
def test_a_planted_mistake_is_found(
    machine: Callable[[], Books], plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    # By the model, by a law or by a constraint of the table. Where a process died is not the same twice: what was found
    # then may not be found again.
    with pytest.raises((AssertionError, StorageRejectedError, Flaky)):
        run(machine, examples=100, planted=True)
