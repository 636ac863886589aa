"""A gate with everything behind it that is ours, and fakes for what is not: the clock, the ledger, the sidecar."""

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from proxy.admission.concurrency import Leases
from proxy.admission.gate import Admission
from proxy.admission.grant import Grant
from proxy.admission.meters import Meters, Pass
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Cells
from proxy.exchange import Arrival, Call, Principal, Question, TextEndpoint, Trace
from proxy.policy.schema import NO_OVERRIDES, Overrides, Policy, Tier
from proxy.store.database import StorageError
from proxy.store.ledger import Standing
from proxy.store.posting import Entry, Settled, Voided
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Count, Endpoint, ModelState, TokenBound

ONE_A_BYTE = TokenBound(per_request=0, per_message=0)
NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


class FakeClock:
    """Both clocks, moved together by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return 1_000.0 + self.seconds

    def now(self) -> dt.datetime:
        return NOON + dt.timedelta(seconds=self.seconds)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class FakeLedger:
    """Keeps what it is told. `writes` decides what becomes of a write: "done", "failed" or "stuck"."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.writes = "done"
        self.standings: dict[tuple[str, str], Standing] = {}
        self.away = False

    async def standing(self, key_id: str, period: str) -> Standing:
        await asyncio.sleep(0)
        if self.away:
            raise StorageError("away")
        return self.standings.get((key_id, period), Standing())

    async def account_standing(self, account_id: str, period: str) -> Standing:
        """Of all keys that are known: there is one account."""
        await asyncio.sleep(0)
        if self.away:
            raise StorageError("away")
        of_period = [standing for (_, month), standing in self.standings.items() if month == period]
        sums = ((getattr(standing, name.name) for standing in of_period) for name in fields(Standing))
        return Standing(*map(sum, sums))

    def reserve(self, entry: Entry, _claimed: Any = (), _limits: Any = None) -> asyncio.Future[None]:
        return self._tell(entry)

    def shrink(self, request_id: str, est_tokens: int) -> asyncio.Future[None]:
        return self._tell((request_id, est_tokens))

    def settle(self, settled: Settled) -> asyncio.Future[None]:
        return self._tell(settled)

    def void(self, voided: Voided) -> asyncio.Future[None]:
        return self._tell(voided)

    def _tell(self, what: object) -> asyncio.Future[None]:
        self.told.append(what)
        self.last = written = self._written()
        return written

    def _written(self) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self.writes == "done":
            written.set_result(None)
        elif self.writes == "failed":
            written.set_exception(StorageError("full"))
        return written


class Payer(NamedTuple):
    """Whose quotas."""

    key_id: str
    account_id: str
    period: str


@dataclass
class Gatehouse:
    """One tier, one model, and requests that arrive."""

    tier: Tier
    model: ModelState
    policy: Policy
    clock: FakeClock = field(default_factory=FakeClock)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    exact: int = 10
    of_account: Overrides = NO_OVERRIDES
    name: str = "req"
    counted: int = 0

    def __post_init__(self) -> None:
        self.meters = Meters(Cells(self.clock), Cells(self.clock), Leases(), QuotaBook(self.ledger, self.clock))
        self.gate = Admission(lambda: self.policy, self.meters, self.ledger, self.clock, storage_s=0.01)

    def call(self, **fields: Any) -> Call:
        given: dict[str, Any] = {
            "endpoint": Endpoint.CHAT,
            "model": self.model.id,
            "stream": False,
            "choices": 1,
            "max_output_tokens": 10,
            "max_output_param": "max_tokens",
            "messages": 1,
            "body": b"x" * 10,
        }
        return Call(**{**given, **fields})

    def principal(
        self, key_id: str = "k", models: frozenset[str] | None = None, own: Overrides = NO_OVERRIDES
    ) -> Principal:
        of = self.of_account
        return Principal(
            account_id="a", key_id=key_id, tier=self.tier.name, models=models, limits=own, account_limits=of
        )

    def arrival(self) -> Arrival:
        number = len(self.ledger.told)
        trace = Trace("1" * 32, "2" * 16, sampled=False, tracestate="")
        now, utc = self.clock.monotonic(), self.clock.now()
        return Arrival(f"{self.name}_{number}", "client-1", trace, "127.0.0.1", now, utc)

    async def count(self, call: Call) -> Count:
        self.counted += 1
        await asyncio.sleep(0)
        return Count(self.exact, self.model.max_context)

    async def admit(
        self,
        key_id: str = "k",
        models: frozenset[str] | None = None,
        own: Overrides = NO_OVERRIDES,
        **fields: Any,
    ) -> Grant:
        principal, call = self.principal(key_id, models, own), self.call(**fields)
        model = replace(self.model, id=call.model)
        with await self.gate.turn(principal, call.model) as turn:
            arrival = self.arrival()
            return await self.gate.admit(principal, call, arrival, model, self.count, turn=turn, upstream="local")

    async def ask(self, key_id: str = "k", models: frozenset[str] | None = None) -> Pass:
        """Let a question in."""
        question = Question(TextEndpoint.TOKENIZE, self.model.id, b"{}")
        return await self.gate.admit_question(self.principal(key_id, models), question, self.arrival(), self.model)

    async def refused(self, **fields: Any) -> ApiError:
        """A refusal, which has consumed nothing."""
        before = self.consumed()
        with pytest.raises(ApiError) as caught:
            await self.admit(**fields)
        assert self.consumed() == before
        return caught.value

    def consumed(self) -> tuple[object, ...]:
        """Everything that a request can take."""
        quotas = self.meters.quotas
        lines = [*quotas._keys.items(), *quotas._accounts.items()]
        taken = {key: (line.reserved_requests, line.reserved_tokens) for key, line in lines if line.reserved_requests}
        cells = (dict(self.meters.requests._full_at), dict(self.meters.tokens._full_at))
        return len(self.ledger.told), cells, taken, len(self.meters.leases)

    def used(self, key_id: str = "k", period: str = "2026-11") -> tuple[int, int]:
        """Requests and tokens of the month, settled and reserved."""
        quotas, payer = self.meters.quotas, Payer(key_id, "a", period)
        return quotas.peek_requests(payer, None).used, quotas.peek_tokens(payer, None, 0).used

    def used_by_account(self, period: str = "2026-11") -> tuple[int, int]:
        """The same of all keys together."""
        quotas, payer = self.meters.quotas, Payer("", "a", period)
        requests = quotas.peek_requests(payer, None, account=True).used
        return requests, quotas.peek_tokens(payer, None, 0, account=True).used


@pytest.fixture
def build() -> Callable[..., Gatehouse]:
    """Make a gatehouse; what is given of a tier or a model differs from "no limit" and a plain model."""

    def make(*, max_context: int = 1000, bound: TokenBound | None = ONE_A_BYTE, **limits: Any) -> Gatehouse:
        names = ("requests_per_minute", "tokens_per_minute", "concurrency", "monthly_requests", "monthly_tokens")
        open_: dict[str, Any] = dict.fromkeys((*names, "max_output_tokens", "default_output_tokens"))
        tier = Tier(**{"name": "t", "models": frozenset({"*"}), "priority": 3, **open_, **limits})
        model = ModelState("m", max_context, "packed", "fp32", "cpu", "fp", 0, [], bound)
        return Gatehouse(tier, model, Policy(tiers={"t": tier}, revision="0" * 12))

    return make
