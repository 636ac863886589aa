"""Whatever comes and however it ends: what is held is what runs, an account has what its keys have, nothing is left."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from proxy.admission.concurrency import Leases
from proxy.admission.meters import Hold, Meters, Size, Subject
from proxy.admission.quota import QuotaBook
from proxy.admission.rate import Cells
from proxy.admission.rules import Rulebook
from proxy.exchange import Principal
from proxy.policy.schema import ModelRules, Overrides, Policy, Tier
from proxy.store.ledger import Standing
from tests.fakes.proxy import FakeClock

PERIOD = "2026-11"
KEYS = ("one", "two", "three")
MODELS = ("plain", "apart")
TIER: dict[str, Any] = {
    "name": "t", "requests_per_minute": 6, "tokens_per_minute": 300, "concurrency": 3, "monthly_requests": 20,
    "monthly_tokens": 700, "account_monthly_tokens": 1000, "max_output_tokens": None, "default_output_tokens": None,
    "models": frozenset({"*"}), "priority": 0,
    "per_model": {"apart": ModelRules(requests_per_minute=4, tokens_per_minute=200, concurrency=2)},
}  # fmt: skip
SHADOWS = (frozenset(), frozenset({"tokens_per_minute", "concurrency"}), frozenset({"requests_per_minute"}))


class Nothing:
    """A ledger in which nothing stands yet."""

    async def standing(self, _key_id: str, _period: str) -> Standing:
        return Standing()

    async def account_standing(self, _account_id: str, _period: str) -> Standing:
        return Standing()


def at_once(work: Any) -> None:
    """Run a coroutine that waits for nobody."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


class Comings(RuleBasedStateMachine):
    """Requests of three keys of an account on two models, under one of three tiers; a list is the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        tiers = {str(at): Tier(**{**TIER, "name": str(at), "shadow": shadow}) for at, shadow in enumerate(SHADOWS)}
        policy = Policy(tiers=tiers, revision="0" * 12)
        self.book = Rulebook(lambda: policy)
        self.meters = Meters(Cells(self.clock), Cells(self.clock), Leases(), QuotaBook(Nothing(), self.clock))
        self.running: list[tuple[Subject, Hold]] = []
        self.settled: list[tuple[str, int]] = []

    def subject(self, key_id: str, model: str, tier: int) -> Subject:
        own = Overrides(concurrency=1) if key_id == "three" else Overrides()
        principal = Principal("a", key_id, str(tier), None, limits=own)
        return Subject(key_id, "a", self.book.of(principal, model), PERIOD)

    @rule(
        key_id=st.sampled_from(KEYS),
        model=st.sampled_from(MODELS),
        tier=st.integers(0, 2),
        tokens=st.integers(0, 250),
        tried=st.integers(0, 250),
    )
    def come(self, key_id: str, model: str, tier: int, tokens: int, tried: int) -> None:
        subject, size = self.subject(key_id, model, tier), Size(tokens, min(tokens, tried))
        at_once(self.meters.quotas.prime(subject))
        unfit = self.meters.unfit(subject, size)
        if all(limit.shadow for limit in unfit):
            self.running.append((subject, self.meters.take(subject, size, unfit)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(0, 300))
    def shrink(self, data: st.DataObject, tokens: int) -> None:
        _, hold = data.draw(st.sampled_from(self.running))
        if tokens <= hold.reserved_tokens:
            hold.shrink(tokens)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), used=st.integers(0, 300))
    def settle(self, data: st.DataObject, used: int) -> None:
        subject, hold = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        hold.settle(used)
        self.settled.append((subject.key_id, used))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        _, hold = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        hold.void()

    @rule(seconds=st.sampled_from([0.5, 7.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def lines(self) -> dict[str, tuple[int, int]]:
        """Requests and tokens that each key has in the month, by the reference."""
        return {
            key_id: (
                sum(subject.key_id == key_id for subject, _ in self.running)
                + sum(settled == key_id for settled, _ in self.settled),
                sum(hold.reserved_tokens for subject, hold in self.running if subject.key_id == key_id)
                + sum(used for settled, used in self.settled if settled == key_id),
            )
            for key_id in KEYS
        }

    @invariant()
    def the_month_is_what_runs_and_what_was_used(self) -> None:
        quotas = self.meters.quotas
        lines = self.lines()
        for key_id, (requests, tokens) in lines.items():
            subject = self.subject(key_id, "plain", 0)
            if (key_id, PERIOD) in quotas._keys:
                assert quotas.peek_requests(subject, None).used == requests
                assert quotas.peek_tokens(subject, None, 0).used == tokens
        if quotas._accounts:
            subject = self.subject("one", "plain", 0)
            assert quotas.peek_requests(subject, None, account=True).used == sum(each for each, _ in lines.values())
            assert quotas.peek_tokens(subject, None, 0, account=True).used == sum(each for _, each in lines.values())

    @invariant()
    def no_more_leases_are_out_than_requests_run(self) -> None:
        assert len(self.meters.leases) <= len(self.running)

    def teardown(self) -> None:
        for _, hold in self.running:
            hold.void()
        assert len(self.meters.leases) == 0
        # Whatever is owed is owed for a time; after it every cell is full again.
        self.clock.seconds += 3600
        for key_id in KEYS:
            for model in MODELS:
                subject = self.subject(key_id, model, 0)
                for limit in subject.rules.limits[:2]:
                    assert self.meters.rate_look(subject, limit, 0).remaining == limit.most


def test_nothing_is_lost_and_nothing_is_left() -> None:
    run_state_machine_as_test(Comings, settings=settings(max_examples=60, stateful_step_count=40))  # type: ignore[no-untyped-call]  # hypothesis leaves it so
