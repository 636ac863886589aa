"""A stretch of recorded requests, one after the other, through the real admission under a policy.

Arrivals, counts and ends happen in the order and at the distances in which they were recorded. What a policy lets in
runs as long as it ran, and produces what it produced, or what its smaller reservation leaves.
"""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from proxy.admission.concurrency import Leases
from proxy.admission.gate import Admission
from proxy.admission.grant import Grant, Written
from proxy.admission.meters import Meters
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Cells
from proxy.clock import month_of
from proxy.exchange import Arrival, Call, Ending, Outcome, Trace
from proxy.policy.schema import Policy
from proxy.simulation.report import Report, Verdict, report
from proxy.simulation.request import ELSEWHERE, OLD, OPEN, REFUSED, Caller, Request, Usual, request, usual
from proxy.simulation.time import JumpingClock, JumpingLoop
from proxy.store.claims import Claim
from proxy.store.posting import Entry, Settled, Voided
from proxy.store.recordings import Recorded
from proxy.store.standing import Monthly, Standing
from proxy.verdict import SHADOW, RefusedError
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Count, Usage

NO_TRACE: Final = Trace("0" * 32, "0" * 16, sampled=False, tracestate="")
REMARKS: Final = {
    ELSEWHERE: "{n} had been refused by rules that are not admission's, which a simulation does not try.",
    REFUSED: "{n} had been refused: what they would have taken is the mean of their model.",
    OPEN: "{n} were still running: what they take is the mean of their model.",
    OLD: "{n} were recorded by an earlier version, without what they asked for: it is what they produced.",
}


def simulate(
    policy: Policy, recorded: Sequence[Recorded], callers: Iterable[Caller], *, since: dt.datetime, until: dt.datetime
) -> Report:
    """What the policy says of recorded requests, which are in the order in which they came."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, JumpingLoop)  # noqa: S101 - made two lines above
        day = _Day(policy, {caller.key_id: caller for caller in callers}, loop, since)
        runner.run(day.live(recorded, usual(recorded)))
    return report(day.verdicts(), since=since, until=until, revision=policy.revision, remarks=day.remarks())


class _Books:
    """A ledger that writes nothing, and knows what was used before. Every write is done at once."""

    def __init__(self, callers: Mapping[str, Caller], period: str) -> None:
        self._callers = callers
        self._period = period

    async def standing(self, key_id: str, period: str) -> Standing:
        return self._sum([caller for caller in (self._callers.get(key_id),) if caller], period)

    async def account_standing(self, account_id: str, period: str) -> Standing:
        return self._sum([caller for caller in self._callers.values() if caller.account_id == account_id], period)

    def _sum(self, callers: list[Caller], period: str) -> Standing:
        # Of later months nothing was used before.
        if period != self._period:
            return Standing()
        tokens = sum(caller.used_tokens for caller in callers)
        return Standing(settled_tokens=tokens, settled_requests=sum(caller.used_requests for caller in callers))

    def reserve(self, _entry: Entry, _claimed: tuple[Claim, ...], _limits: Monthly) -> Written:
        return _written()

    def shrink(self, _request_id: str, _est_tokens: int) -> Written:
        return _written()

    def settle(self, _settled: Settled) -> Written:
        return _written()

    def void(self, _voided: Voided) -> Written:
        return _written()


class _Day:
    """One simulation. Mutable: `_verdicts`, by the order of arrival; `_assumed`, what was assumed of how many."""

    def __init__(self, policy: Policy, callers: Mapping[str, Caller], loop: JumpingLoop, since: dt.datetime) -> None:
        self._loop = loop
        self._since = since
        self._callers = callers
        self._clock = JumpingClock(loop, since)
        books = _Books(callers, month_of(since))
        meters = Meters(Cells(self._clock), Cells(self._clock), Leases(), QuotaBook(books, self._clock))
        self._admission = Admission(lambda: policy, meters, books, self._clock, storage_s=1.0)
        self._verdicts: dict[int, Verdict] = {}
        self._assumed: Counter[str] = Counter()
        self._unknown = 0

    async def live(self, recorded: Sequence[Recorded], means: Mapping[str, Usual]) -> None:
        """Let the requests come, each when it came, and be there until the last one ends."""
        async with asyncio.TaskGroup() as running:
            for number, one in enumerate(recorded):
                await self._loop.until((one.created - self._since) / dt.timedelta(seconds=1))
                try:
                    asked = request(one, self._callers.get(one.key_id), means)
                except ValueError:
                    self._unknown += 1
                    continue
                self._assumed[asked.assumed] += 1
                if asked.assumed == ELSEWHERE:
                    self._verdicts[number] = _verdict(one, one.rule)
                else:
                    running.create_task(self._serve(number, asked))

    async def _serve(self, number: int, asked: Request) -> None:
        """One request, from its arrival to its end, or to its refusal."""
        began_s, arrival = self._clock.monotonic(), self._arrival(asked.recorded)

        async def count(_call: Call) -> Count:
            return Count(asked.prompt_tokens, asked.model.max_context)

        principal, call, model = asked.principal, asked.call, asked.model
        try:
            # As `proxy.pipeline` does.
            self._admission.check(principal, call, model)
            with await self._admission.turn(principal, model.id) as turn:
                grant = await self._admission.admit(principal, call, arrival, model, count, turn=turn)
        except RefusedError as refused:
            self._verdicts[number] = _verdict(asked.recorded, refused.rule)
        except ApiError as error:
            self._verdicts[number] = _verdict(asked.recorded, error.code or error.type)
        else:
            shadow = [remark.rule for remark in grant.remarks if remark.decision == SHADOW]
            waited_s = self._clock.monotonic() - began_s
            self._verdicts[number] = _verdict(asked.recorded, None, shadow, waited_s)
            await self._run(grant, asked)

    async def _run(self, grant: Grant, asked: Request) -> None:
        """What was let in: its prompt is counted at once, it runs as long as it ran, and ends as it ended."""
        async with grant:
            if asked.recorded.prompt_tokens:
                grant.counted(asked.prompt_tokens)
            await self._loop.until(self._clock.monotonic() + asked.runs_s)
            if asked.completion_tokens is None:
                return
            reserved = grant.estimate.output_tokens * grant.estimate.choices
            usage = Usage(asked.prompt_tokens, min(asked.completion_tokens, reserved))
            outcome = Outcome(200, Ending.COMPLETE, usage, "stop")
            _ = grant.settle(outcome, ended=self._clock.now(), duration_ms=0, ttft_ms=None)

    def _arrival(self, recorded: Recorded) -> Arrival:
        return Arrival(recorded.request_id, None, NO_TRACE, "", self._clock.monotonic(), self._clock.now())

    def verdicts(self) -> list[Verdict]:
        return [self._verdicts[number] for number in sorted(self._verdicts)]

    def remarks(self) -> list[str]:
        said = [REMARKS[kind].format(n=count) for kind, count in sorted(self._assumed.items()) if kind]
        return [*said, f"{self._unknown} are of endpoints that this version does not have."] if self._unknown else said


def _verdict(recorded: Recorded, rule: str | None, shadow: Sequence[str] = (), waited_s: float = 0.0) -> Verdict:
    return Verdict(
        request_id=recorded.request_id,
        at=recorded.created,
        key_id=recorded.key_id,
        account_id=recorded.account_id,
        tier=recorded.tier,
        model=recorded.model,
        rule=rule,
        shadow=list(shadow),
        waited_s=round(waited_s, 6),
    )


def _written() -> Written:
    done: Written = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
