"""A day is recorded under a policy that refuses nothing; what a strict one would have refused is what it refuses.

The day runs through the real admission and the real ledger; the same requests then run through the real admission under
the strict policy. Both are stepped by hand, from event to event: the simulation's own loop has no part in them.
"""

import asyncio
import datetime as dt
import heapq
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from proxy.admission.concurrency import Leases
from proxy.admission.estimate import Sizing
from proxy.admission.gate import Admission
from proxy.admission.grant import Grant
from proxy.admission.meters import Meters
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Cells
from proxy.exchange import Arrival, Call, Ending, Outcome, Principal
from proxy.policy.load import load_policy
from proxy.policy.schema import NO_OVERRIDES, Overrides, Policy
from proxy.settings import Database
from proxy.simulation.report import Report
from proxy.simulation.request import Caller
from proxy.simulation.run import simulate
from proxy.store import migrate
from proxy.store.accounts import Account, Accounts
from proxy.store.database import open_database
from proxy.store.keys import KeyRecord, Keys
from proxy.store.ledger import Ledger
from proxy.store.recordings import Recorded, Recordings
from proxy.store.standing import Standing
from proxy.store.writer import Writer
from proxy.verdict import SHADOW, RefusedError
from sidecar.wire.internal import Count, Endpoint, ModelState, TokenBound, Usage
from tests.fakes.proxy import TRACE, FakeClock

# Twelve hours of this month, and twelve of the next.
START = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
DAY_S = 86_400
# What bytes bound is the same in each.
ANY_TIER: Any = None
REQUESTS = 2500
PERMISSIVE = """\
version: 1
tiers:
"""
OPEN = """\
  {name}:
    requests_per_minute: unlimited
    tokens_per_minute: unlimited
    concurrency: unlimited
    monthly_requests: unlimited
    monthly_tokens: unlimited
    max_output_tokens: unlimited
    default_output_tokens: 512
    models: ["*"]
    priority: 0
"""
STRICT = """\
version: 1
tiers:
  free:
    requests_per_minute: 4
    tokens_per_minute: 2500
    concurrency: 2
    monthly_requests: 30
    monthly_tokens: 9000
    max_output_tokens: 400
    default_output_tokens: 256
    models: ["small", "odd"]
    priority: 0
  pro:
    requests_per_minute: 12
    tokens_per_minute: 9000
    concurrency: 3
    monthly_requests: unlimited
    monthly_tokens: 400000
    max_output_tokens: unlimited
    default_output_tokens: 512
    models: ["*"]
    priority: 1
    per_model:
      large: {concurrency: 1, tokens_per_minute: 3000, default_output_tokens: 128}
    shadow: [requests_per_minute]
    account_monthly_requests: 300
    account_monthly_tokens: 400000
"""
MODELS = {
    "small": ModelState("small", 2048, "packed", "fp32", "cpu", "a", 0, [], TokenBound(6, 3)),
    "large": ModelState("large", 8192, "packed", "fp32", "cpu", "b", 0, [], TokenBound(9, 5)),
    # One whose tokens bytes do not bound.
    "odd": ModelState("odd", 1024, "packed", "fp32", "cpu", "c", 0, [], None),
}
# A key's tier, its account, and what it has of its own.
KEYS = {f"free{number}": Principal(f"acc{number % 4}", f"free{number}", "free", None) for number in range(10)} | {
    f"pro{number}": Principal(
        f"acc{number % 3}",
        f"pro{number}",
        "pro",
        frozenset({"small", "large"}) if number == 2 else None,
        limits=Overrides(tokens_per_minute=4000, monthly_requests=150) if number % 3 == 1 else NO_OVERRIDES,
    )
    for number in range(8)
}


@dataclass(frozen=True)
class Wish:
    """One request that comes: what it asks, how long it runs and how much it would say."""

    request_id: str
    at_s: float
    runs_s: float
    principal: Principal
    call: Call
    prompt_tokens: int
    says_tokens: int
    runs: bool


@dataclass(frozen=True)
class Day:
    """What became of each request, by its id: the rule that refused it, and the rules in shadow that would have."""

    rules: dict[str, str | None]
    shadows: dict[str, list[str]]


class NoLedger:
    """Writes nothing, at once; nobody used anything before."""

    async def standing(self, key_id: str, period: str) -> Standing:
        return Standing()

    async def account_standing(self, account_id: str, period: str) -> Standing:
        return Standing()

    def reserve(self, *_: Any) -> asyncio.Future[None]:
        return self._done()

    def shrink(self, *_: Any) -> asyncio.Future[None]:
        return self._done()

    def settle(self, _: Any) -> asyncio.Future[None]:
        return self._done()

    def void(self, _: Any) -> asyncio.Future[None]:
        return self._done()

    def _done(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class DayClock(FakeClock):
    """Both clocks from the start of the day on."""

    def now(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self.seconds)


def wishes(seed: int, count: int = REQUESTS) -> list[Wish]:
    """A day's requests, in bursts, in the order in which they come, no two events at one time."""
    chance = random.Random(seed)
    moments = iter(sorted(chance.sample(range(DAY_S * 1000), count)))
    bursts: list[float] = []
    for _ in range(count):
        at = next(moments) / 1000
        # Most of them come in a crowd.
        bursts.append(bursts[-1] + chance.uniform(0.001, 3) if bursts and chance.random() < 0.9 else at)
    # Micro-seconds are what the ledger keeps of a time; each its own.
    made: list[Wish] = []
    used: set[int] = set()
    for number, at_s in enumerate(sorted(bursts)):
        at_us = round(at_s * 1e6)
        while at_us in used:
            at_us += 1
        used.add(at_us)
        # Who comes in a crowd mostly comes again.
        who = made[-1].principal if made and chance.random() < 0.7 else chance.choice(list(KEYS.values()))
        made.append(wish(chance, f"req_{number:05}", at_us / 1e6, who))
    return made


def wish(chance: random.Random, request_id: str, at_s: float, principal: Principal) -> Wish:
    endpoint = chance.choice([Endpoint.CHAT, Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS])
    prompts = chance.choice([1, 1, 3]) if endpoint is not Endpoint.CHAT else chance.randrange(1, 6)
    choices = (
        1
        if endpoint is Endpoint.EMBEDDINGS
        else chance.choice([1, 1, 1, 2]) * (prompts if endpoint is Endpoint.COMPLETIONS else 1)
    )
    asked = 0 if endpoint is Endpoint.EMBEDDINGS else chance.choice([None, 16, 100, 300, 500])
    size = chance.randrange(20, 900)
    call = Call(
        endpoint=endpoint,
        model=chance.choice(["small", "small", "large", "odd"]),
        stream=chance.random() < 0.5,
        choices=choices,
        max_output_tokens=asked,
        max_output_param="max_tokens",
        messages=prompts,
        body=b"x" * size,
        plain=chance.random() < 0.9,
    )
    says = 0 if endpoint is Endpoint.EMBEDDINGS else chance.randrange(1, 400) * choices
    runs_s = round(chance.uniform(0.01, chance.choice([0.5, 0.5, 30])), 6)
    runs, prompt_tokens = chance.random() < 0.95, chance.randrange(5, size)
    if not runs:
        # Nobody counted it, so that its bound is all that is known of it. It is true here.
        bound = Sizing(structs.replace(call, plain=True), MODELS[call.model], ANY_TIER).prompt_bound
        runs, prompt_tokens = bound is None, bound or prompt_tokens
        call = structs.replace(call, plain=True)
    return Wish(request_id, at_s, runs_s, principal, call, prompt_tokens, says, runs)


async def live(policy: Policy, day: list[Wish], books: Any, *, own: bool = True) -> Day:
    """Run the day through admission, event by event; the keys have limits of their own, or none yet."""
    clock = DayClock()
    meters = Meters(Cells(clock), Cells(clock), Leases(), QuotaBook(books, clock))
    admission = Admission(lambda: policy, meters, books, clock, storage_s=60.0)
    order = itertools.count()
    events: list[tuple[float, int, Callable[[], Any]]] = []
    rules: dict[str, str | None] = {}
    shadows: dict[str, list[str]] = {}
    written: list[Any] = []

    async def arrive(one: Wish) -> None:
        async def count(_call: Call) -> Count:
            return Count(one.prompt_tokens, 0)

        arrival = Arrival(one.request_id, None, TRACE, "", clock.monotonic(), clock.now())
        who = one.principal if own else structs.replace(one.principal, models=None, limits=NO_OVERRIDES)
        try:
            grant = await admission.admit(who, one.call, arrival, MODELS[one.call.model], count)
        except RefusedError as refused:
            rules[one.request_id] = refused.rule
            return
        rules[one.request_id] = None
        shadows[one.request_id] = [remark.rule for remark in grant.remarks if remark.decision == SHADOW]
        if one.runs:
            grant.counted(one.prompt_tokens)
        heapq.heappush(events, (one.at_s + one.runs_s, next(order), lambda: leave(one, grant)))

    async def leave(one: Wish, grant: Grant) -> None:
        async with grant:
            if one.runs:
                said = min(one.says_tokens, grant.estimate.output_tokens * grant.estimate.choices)
                outcome = Outcome(200, Ending.COMPLETE, Usage(one.prompt_tokens, said), "stop")
                _ = grant.settle(outcome, ended=clock.now(), duration_ms=1, ttft_ms=None)
        written.append(grant._ended)
        # The ledger's writer has its turn.
        await asyncio.sleep(0)

    for one in day:
        heapq.heappush(events, (one.at_s, next(order), lambda one=one: arrive(one)))  # type: ignore[misc]
    while events:
        clock.seconds, _, happens = heapq.heappop(events)
        await happens()
    await asyncio.gather(*written)
    return Day(rules, shadows)


def policy(folder: Path, text: str) -> Policy:
    folder.mkdir()
    (folder / "a.yaml").write_text(text)
    return load_policy(folder)


@pytest.fixture
def permissive(tmp_path: Path) -> Policy:
    return policy(tmp_path / "open", PERMISSIVE + OPEN.format(name="free") + OPEN.format(name="pro"))


@pytest.fixture
def strict(tmp_path: Path) -> Policy:
    return policy(tmp_path / "strict", STRICT)


@dataclass(frozen=True)
class Store:
    """What the day is recorded in."""

    writer: Writer
    ledger: Ledger
    recordings: Recordings


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A database with the keys of the day."""
    settings = Database(url=f"sqlite+aiosqlite:///{tmp_path / 'day.db'}", synchronous="NORMAL")
    await asyncio.to_thread(migrate.upgrade, settings)
    async with open_database(settings) as database, Writer(database, FakeClock()) as writer:
        for account in sorted({key.account_id for key in KEYS.values()}):
            await Accounts(writer).create(Account(account, account, START))
        for key in KEYS.values():
            record = KeyRecord(key.key_id, key.account_id, key.key_id, key.tier, key.models, b"m" * 32, 1, START)
            await Keys(writer).create(record)
        yield Store(writer, Ledger(writer, "boot_1"), Recordings(writer))


async def recorded(store: Store, since: dt.datetime, until: dt.datetime, page: int = 777) -> list[Recorded]:
    found: list[Recorded] = []
    while True:
        more = await store.recordings.page(since, until, after=found[-1] if found else None, limit=page, key_id=None)
        found += more
        if len(more) < page:
            return found


def callers() -> list[Caller]:
    return [
        Caller(key.key_id, key.account_id, None if key.models is None else sorted(key.models), key.limits)
        for key in KEYS.values()
    ]


async def simulated(strict: Policy, rows: list[Recorded], known: list[Caller], since: dt.datetime) -> Report:
    until = START + dt.timedelta(days=1)
    # It has a loop of its own, and a thread of its own here.
    return await asyncio.to_thread(simulate, strict, rows, known, since=since, until=until)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_simulation_agrees_with_what_enforcing_then_refuses(
    permissive: Policy, strict: Policy, store: Store, seed: int
) -> None:
    day = wishes(seed)
    refused = await live(permissive, day, store.ledger, own=False)
    assert set(refused.rules.values()) == {None}
    rows = await recorded(store, START, START + dt.timedelta(days=2))
    assert [row.request_id for row in rows] == [one.request_id for one in day]
    assert await store.ledger.check() == []

    said = await simulated(strict, rows, callers(), START)
    then = await live(strict, day, NoLedger())

    assert {one.request_id: one.rule for one in said.refusals if one.rule} == {
        request_id: rule for request_id, rule in then.rules.items() if rule
    }
    assert {one.request_id: one.shadow for one in said.refusals if one.shadow} == {
        request_id: shadow for request_id, shadow in then.shadows.items() if shadow
    }
    # It was worth comparing: each rule had something to say, and most were let in.
    rules = Counter(rule for rule in then.rules.values() if rule)
    assert set(rules) >= {
        "requests_per_minute",
        "tokens_per_minute",
        "concurrency",
        "monthly_requests",
        "monthly_tokens",
        "account_monthly_requests",
        "max_output_tokens",
        "models",
    }
    assert sum(rules.values()) < REQUESTS * 0.7
    assert (said.requests, said.refused, said.remarks) == (REQUESTS, sum(rules.values()), [])
