"""Leases: taken, counted, and given back exactly once; and the line of those who wait, by a state machine."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from proxy.admission.concurrency import ConcurrencyLook, Lease, Leases


def test_as_many_fit_as_the_limit_says() -> None:
    leases = Leases()
    first = leases.take("k")
    assert leases.fits("k", 2)
    leases.take("k")
    look = leases.peek("k", 2)
    assert (leases.fits("k", 2), look.running, look.limit) == (False, 2, 2)
    first.release()
    assert leases.fits("k", 2)


def test_a_second_release_gives_nothing_back() -> None:
    leases = Leases()
    first, second = leases.take("k"), leases.take("k")
    first.release()
    first.release()
    assert leases.running("k") == 1
    second.release()
    assert leases.running("k") == 0


def test_keys_do_not_share() -> None:
    leases = Leases()
    leases.take("a")
    assert not leases.fits("a", 1)
    assert leases.fits("b", 1)
    assert len(leases) == 1


def test_without_a_limit_everything_is_counted() -> None:
    leases = Leases()
    taken = [leases.take("k") for _ in range(100)]
    assert leases.peek("k", None) == ConcurrencyLook(None, 100)
    for lease in taken:
        lease.release()
    assert len(leases) == 0


def test_a_limit_that_was_raised_lets_nobody_pass_those_who_wait() -> None:
    leases = Leases()
    leases.take("k")
    visitor = Visitor(leases, 1)
    assert not leases.fits("k", 2)
    leases.limited("k", 3)
    assert (visitor.woken, leases.running("k"), leases.fits("k", 3)) == (1, 2, True)


class Visitor:
    """One that waits."""

    def __init__(self, leases: Leases, limit: int) -> None:
        self.woken = 0
        self.place = leases.line_up("k", limit, self.wake)

    def wake(self) -> None:
        self.woken += 1


class Queueing(RuleBasedStateMachine):
    """Requests of one key come, wait, lose patience, run and end, and its limit changes; a list is the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.leases, self.limit = Leases(), 2
        self.running: list[Lease] = []
        self.waiting: list[Visitor] = []

    def settle(self) -> None:
        """What was handed over runs now; it must have been the first in line, and been told."""
        while self.waiting and (lease := self.waiting[0].place.lease) is not None:
            assert self.waiting.pop(0).woken == 1
            self.running.append(lease)
        assert all(visitor.place.lease is None for visitor in self.waiting), "somebody was passed"

    @rule(patient=st.booleans())
    def come(self, patient: bool) -> None:
        if self.leases.fits("k", self.limit):
            assert not self.waiting, "passed those who wait"
            self.running.append(self.leases.take("k"))
        elif patient:
            self.wait()

    def wait(self) -> None:
        self.waiting.append(Visitor(self.leases, self.limit))
        self.settle()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), twice=st.booleans())
    def end(self, data: st.DataObject, twice: bool) -> None:
        lease = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        lease.release()
        if twice:
            lease.release()
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def lose_patience(self, data: st.DataObject) -> None:
        visitor = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert self.leases.step_out("k", visitor.place) is None
        self.settle()

    @precondition(lambda self: self.waiting and self.running)
    @rule()
    def lose_patience_just_when_it_is_the_turn(self) -> None:
        place = self.waiting[0].place
        self.running.pop(0).release()
        if place.lease is not None:
            self.waiting.pop(0)
            lease = self.leases.step_out("k", place)
            assert lease is not None
            lease.release()
        self.settle()

    @rule(limit=st.integers(1, 4))
    def change_the_limit(self, limit: int) -> None:
        self.limit = limit
        self.leases.limited("k", limit)
        self.settle()

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        assert self.leases.running("k") == len(self.running) == len(self.leases)
        assert self.leases.waiting("k") == len(self.waiting)
        assert not self.waiting or len(self.running) >= self.limit
        assert ("k" in self.leases._lines) == bool(self.waiting)

    def teardown(self) -> None:
        while self.running or self.waiting:
            self.running.pop().release()
            self.settle()
        assert (self.leases._running, self.leases._lines) == ({}, {})


def test_nobody_is_passed_and_nobody_waits_while_a_lease_is_free() -> None:
    run_state_machine_as_test(Queueing, settings=settings(max_examples=100, stateful_step_count=40))  # type: ignore[no-untyped-call]  # hypothesis leaves it so
