"""What a policy answers, in a time that passes only when it is waited for: the real rooms of admission, without a wire.

For the cookbook, docs/policies.md: what is said there of a policy is what was said here.
"""

import asyncio
import datetime as dt
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry

from proxy.admission.abuse import Abuse
from proxy.admission.concurrency import Leases
from proxy.admission.gate import Admission
from proxy.admission.grant import Grant, Written
from proxy.admission.meters import WARNING_HEADER, Meters
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Cells
from proxy.body import read_call
from proxy.clock import seconds_to_next_month
from proxy.exchange import Arrival, Call, Ending, Outcome, Principal
from proxy.load import Load
from proxy.metrics import Metrics
from proxy.policy.schema import Policy
from proxy.simulation.time import JumpingClock, JumpingLoop
from proxy.store.standing import Standing
from proxy.verdict import SHADOW, RefusedError
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Count, Endpoint, ModelState, Usage
from tests.fakes.proxy import TRACE

MONDAY: Final = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)
IDLE: Final = Load(0, 0, 0, 0.0)
CONTEXT: Final = 32_768


@dataclass(frozen=True)
class Said:
    """What a client is told. `rule`: what refused it, `shadow`: what would have. `waited_s`: for its turn."""

    status: int
    code: str | None = None
    rule: str | None = None
    retry_after_s: int | None = None
    next_month: bool = False
    waited_s: float = 0.0
    warned: bool = False
    shadow: tuple[str, ...] = ()

    def cells(self) -> tuple[str, str, str]:
        """As the cookbook's tables have it: the answer, the rule, and when to come again."""
        return self._answer(), f"`{self.rule}`" if self.rule else "", self._again()

    def _answer(self) -> str:
        if self.status != 200:
            return f"{self.status} `{self.code}`"
        notes = [f"after {self.waited_s:g} s"] if self.waited_s else []
        notes += [f"with `{WARNING_HEADER}`"] if self.warned else []
        notes += [f"`shadow` `{rule}` in the log" for rule in self.shadow]
        return ", ".join(["200", *notes])

    def _again(self) -> str:
        if self.status == 200:
            return ""
        if self.next_month:
            return "next month"
        return "" if self.retry_after_s is None else f"in {self.retry_after_s} s"


class _Books:
    """A ledger that writes nothing. Mutable: `used`, the tokens and requests of the month so far, by key."""

    def __init__(self) -> None:
        self.used: dict[str, tuple[str, int, int]] = {}

    async def standing(self, key_id: str, _period: str) -> Standing:
        return self._sum(lambda key, _account: key == key_id)

    async def account_standing(self, account_id: str, _period: str) -> Standing:
        return self._sum(lambda _key, account: account == account_id)

    def _sum(self, concerns: Callable[[str, str], bool]) -> Standing:
        of = [(tokens, requests) for key, (account, tokens, requests) in self.used.items() if concerns(key, account)]
        return Standing(settled_tokens=sum(one[0] for one in of), settled_requests=sum(one[1] for one in of))

    def reserve(self, *_: object) -> Written:
        return _written()

    def shrink(self, *_: object) -> Written:
        return _written()

    def settle(self, *_: object) -> Written:
        return _written()

    def void(self, *_: object) -> Written:
        return _written()


def _written() -> Written:
    done: Written = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


@dataclass
class Desk:
    """A server under a policy. `load` is what its sidecars have to do; requests that run end by themselves."""

    policy: Policy
    loop: JumpingLoop
    load: Load = IDLE
    log: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.clock = JumpingClock(self.loop, MONDAY)
        self.books = _Books()
        meters = Meters(Cells(self.clock), Cells(self.clock), Leases(), QuotaBook(self.books, self.clock))
        self._admission = Admission(
            lambda: self.policy, meters, self.books, self.clock, storage_s=1.0, load=lambda _model: self.load
        )
        metrics = Metrics(self.clock, CollectorRegistry(), "1")
        self._abuse = Abuse(lambda: self.policy, metrics, self.clock, JsonLog(self.log))
        self._tasks = asyncio.TaskGroup()
        self._asked = 0

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._tasks.__aexit__(*exc)

    def key(
        self, tier: str, *, account: str = "", used_tokens: int = 0, used_requests: int = 0, **own: Any
    ) -> Principal:
        """A new key, that has used so much of its month, with limits or addresses of its own."""
        name = f"{tier}-{len(self.books.used)}"
        self.books.used[name] = (account or name, used_tokens, used_requests)
        return Principal(account or name, name, tier, None, **own)

    async def ask(
        self,
        key: Principal,
        *,
        model: str = "small",
        prompt: str = "",
        prompt_tokens: int = 100,
        max_tokens: int | None = None,
        runs_s: float = 0.0,
        answer_tokens: int = 100,
        address: str = "192.0.2.1",
    ) -> Said:
        """What it is told, once that is known. What is let in runs on for so long, and answers with so much."""
        self._asked += 1
        began_s = self.clock.monotonic()
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt or f"question {self._asked}"}],
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        try:
            grant, remarks = await self._admitted(key, body, prompt_tokens, address)
        except RefusedError as refused:
            return self._refusal(refused, refused.rule)
        except ApiError as error:
            return self._refusal(error, None)
        warned = WARNING_HEADER in grant.headers()
        begun = asyncio.Event()
        self._tasks.create_task(self._run(grant, begun, runs_s, Usage(prompt_tokens, answer_tokens)))
        await begun.wait()
        waited_s = round(self.clock.monotonic() - began_s, 3)
        return Said(200, waited_s=waited_s, warned=warned, shadow=remarks)

    def later(self, asking: Awaitable[Said]) -> asyncio.Task[Said]:
        """One of several that are asked at once."""
        return self._tasks.create_task(_said(asking))

    async def passes(self, seconds: float) -> None:
        await self.loop.until(self.clock.monotonic() + seconds)

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in found if line["event"] == event]

    async def _admitted(
        self, key: Principal, body: dict[str, Any], prompt_tokens: int, address: str
    ) -> tuple[Grant, tuple[str, ...]]:
        """As `proxy.pipeline` does."""
        self._abuse.came(key, address)
        call = read_call(Endpoint.CHAT, json.dumps(body).encode(), max_choices=8, max_prompts=32)
        model = ModelState(call.model, CONTEXT, "packed", "fp32", "cpu", "f", 0, [], None)
        arrival = Arrival(f"req_{self._asked}", None, TRACE, address, self.clock.monotonic(), self.clock.now())

        async def count(_call: Call) -> Count:
            return Count(prompt_tokens, CONTEXT)

        with self._abuse.asked(key, call) as remarks:
            self._admission.check(key, call, model)
            with await self._admission.turn(key, call.model) as turn:
                grant = await self._admission.admit(key, call, arrival, model, count, turn=turn)
        said = (*remarks, *grant.remarks)
        return grant, tuple(remark.rule for remark in said if remark.decision == SHADOW)

    async def _run(self, grant: Grant, begun: asyncio.Event, runs_s: float, usage: Usage) -> None:
        async with grant:
            begun.set()
            if runs_s:
                await self.passes(runs_s)
            outcome = Outcome(200, Ending.COMPLETE, usage, "stop")
            await grant.settle(outcome, ended=self.clock.now(), duration_ms=0, ttft_ms=None)

    def _refusal(self, error: ApiError, rule: str | None) -> Said:
        wait = error.headers().get("retry-after")
        next_month = wait is not None and int(wait) >= seconds_to_next_month(self.clock.now()) > 0
        return Said(error.status, error.code, rule, None if wait is None else int(wait), next_month)


async def _said(asking: Awaitable[Said]) -> Said:
    return await asking
