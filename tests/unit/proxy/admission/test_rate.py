"""Rates: against a reference that keeps every charge, and the waits to the nanosecond."""

import datetime as dt
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.rate import Allowance, Cells, Charge, Rate

NS = 10**9


class FakeClock:
    """Nanoseconds, so that sums of steps are exact."""

    def __init__(self) -> None:
        self.ns = 1_000 * NS

    def monotonic(self) -> float:
        return self.ns / NS

    def now(self) -> dt.datetime:
        raise AssertionError("rates are monotonic")

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * NS)


class Bucket:
    """The same rule, naively: a bucket that fills evenly up to its limit."""

    def __init__(self, rate: Rate, now_ns: int) -> None:
        self.rate = rate
        self.level = Fraction(rate.limit)
        self.at_ns = now_ns

    def _fill(self, now_ns: int) -> None:
        gained = Fraction((now_ns - self.at_ns) * self.rate.limit, self.rate.period_s * NS)
        self.level = min(Fraction(self.rate.limit), self.level + gained)
        self.at_ns = now_ns

    def fits(self, units: int, now_ns: int) -> bool:
        self._fill(now_ns)
        return units <= self.level

    def take(self, units: int, now_ns: int) -> None:
        self._fill(now_ns)
        self.level -= units


def cells() -> tuple[Cells, FakeClock]:
    clock = FakeClock()
    return Cells(clock), clock


STEPS = st.lists(st.tuples(st.integers(0, 90 * NS), st.integers(1, 40)), max_size=60)


@given(limit=st.integers(1, 30), steps=STEPS)
def test_it_lets_through_what_a_naive_bucket_lets_through(limit: int, steps: list[tuple[int, int]]) -> None:
    kept, clock = cells()
    rate = Rate(limit)
    naive = Bucket(rate, clock.ns)
    for wait_ns, units in steps:
        clock.ns += wait_ns
        look = kept.peek("k", rate, units)
        assert look.fits == naive.fits(units, clock.ns)
        assert look.remaining == max(0, naive.level // 1)
        if look.fits:
            kept.commit("k", rate, units)
            naive.take(units, clock.ns)


@given(limit=st.integers(1, 10**6), spent=st.lists(st.integers(1, 1000), max_size=30), units=st.integers(1, 1000))
def test_a_wait_is_true_to_the_nanosecond(limit: int, spent: list[int], units: int) -> None:
    kept, clock = cells()
    rate = Rate(limit)
    for some in spent:
        if kept.peek("k", rate, some).fits:
            kept.commit("k", rate, some)
    look = kept.peek("k", rate, units)
    if look.retry_after_s:
        clock.ns += round(look.retry_after_s * NS) - 1
        assert not kept.peek("k", rate, units).fits
        clock.ns += 1
        assert kept.peek("k", rate, units).fits


def test_ten_a_minute_are_ten_at_once_and_then_one_each_six_seconds() -> None:
    kept, clock = cells()
    rate = Rate(10)
    for left in range(9, -1, -1):
        assert kept.peek("k", rate, 1).fits
        kept.commit("k", rate, 1)
        assert kept.peek("k", rate, 0).remaining == left
    refused = kept.peek("k", rate, 1)
    assert (refused.fits, refused.retry_after_s, refused.reset_s, refused.used) == (False, 6.0, 60.0, 10)
    clock.advance(6)
    assert kept.peek("k", rate, 1).fits


def test_a_look_takes_nothing() -> None:
    kept, _ = cells()
    for _ in range(5):
        assert kept.peek("k", Rate(1), 1).fits
    assert len(kept) == 0


def test_more_than_the_whole_can_never_fit() -> None:
    kept, _ = cells()
    look = kept.peek("k", Rate(10), 11)
    assert (look.fits, look.retry_after_s) == (False, None)


def test_nothing_always_fits() -> None:
    kept, _ = cells()
    kept.commit("k", Rate(10), 25)
    assert kept.peek("k", Rate(10), 0).fits
    assert kept.peek("k", Rate(10), 0).remaining == 0


def test_subjects_and_limits_do_not_share_a_cell() -> None:
    kept, _ = cells()
    kept.commit("a", Rate(1), 1)
    assert not kept.peek("a", Rate(1), 1).fits
    assert kept.peek("b", Rate(1), 1).fits
    assert kept.peek("a", Rate(2), 2).fits


def test_a_refund_gives_back_what_was_not_used() -> None:
    kept, _ = cells()
    charge = kept.commit("k", Rate(100), 80)
    kept.refund(charge, 70)
    assert kept.peek("k", Rate(100), 0).remaining == 90


def test_a_full_refund_leaves_nothing_behind() -> None:
    kept, _ = cells()
    charge = kept.commit("k", Rate(100), 80)
    kept.refund(charge, 80)
    assert len(kept) == 0
    kept.refund(charge, 80)
    assert kept.peek("k", Rate(100), 0).remaining == 100


def test_a_refund_is_never_more_than_its_charge() -> None:
    kept, _ = cells()
    kept.commit("k", Rate(100), 50)
    charge = kept.commit("k", Rate(100), 10)
    kept.refund(charge, 1000)
    assert kept.peek("k", Rate(100), 0).remaining == 50


def test_what_time_gave_back_is_not_given_back_again() -> None:
    kept, clock = cells()
    early = kept.commit("k", Rate(60), 60)
    clock.advance(60)
    kept.commit("k", Rate(60), 60)
    kept.refund(early, 59)
    assert kept.peek("k", Rate(60), 0).remaining == 0


def test_the_part_that_time_has_not_given_back_is_given_back() -> None:
    kept, clock = cells()
    early = kept.commit("k", Rate(60), 60)
    clock.advance(20)
    kept.commit("k", Rate(60), 20)
    kept.refund(early, 60)
    assert kept.peek("k", Rate(60), 0).remaining == 40


@given(
    limit=st.integers(1, 100),
    steps=st.lists(st.tuples(st.integers(0, 20 * NS), st.integers(1, 50), st.booleans(), st.floats(0, 1)), max_size=50),
)
def test_what_is_used_never_exceeds_one_bucket_and_what_has_flowed_in(
    limit: int, steps: list[tuple[int, int, bool, float]]
) -> None:
    kept, clock = cells()
    rate = Rate(limit)
    began_ns, open_charges, used = clock.ns, list[Charge](), 0
    for wait_ns, units, ends, share in steps:
        clock.ns += wait_ns
        if ends and open_charges:
            charge = open_charges.pop(0)
            spent = round(charge.units * share)
            used += spent
            kept.refund(charge, charge.units - spent)
        elif kept.peek("k", rate, units).fits:
            open_charges.append(kept.commit("k", rate, units))
        flowed = Fraction((clock.ns - began_ns) * limit, 60 * NS)
        assert used <= limit + flowed


def test_full_cells_are_forgotten() -> None:
    kept, clock = cells()
    for number in range(1000):
        kept.commit(f"early {number}", Rate(60), 1)
    clock.advance(2)
    for number in range(1000):
        kept.commit(f"late {number}", Rate(60), 1)
    assert len(kept) <= 1025
    assert not kept.peek("late 0", Rate(60), 60).fits


def test_a_forgotten_cell_was_full() -> None:
    kept, clock = cells()
    kept.commit("held", Rate(2), 2)
    for number in range(5000):
        kept.commit(f"{number}", Rate(10**6), 1)
        clock.advance(0.001)
    assert kept.peek("held", Rate(2), 1).retry_after_s == 25.0
    assert len(kept) < 3000


def test_an_allowance_counts_until_it_is_spent() -> None:
    clock = FakeClock()
    allowance = Allowance(clock, Rate(2))
    assert [allowance.take("a"), allowance.take("a"), allowance.take("b")] == [0, 0, 0]
    assert allowance.take("a") == 30.0
    assert allowance.take("a") == 30.0
    clock.advance(30)
    assert allowance.take("a") == 0
