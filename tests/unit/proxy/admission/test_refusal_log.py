"""What is kept of refused requests, and that no key fills the log with them."""

from collections.abc import Callable
from typing import Any

from proxy.admission.gate import Admission
from proxy.admission.refusal_log import MOST_PER_MINUTE, RefusalLog
from proxy.policy.schema import Policy
from proxy.store.refusals import Refused
from proxy.verdict import RefusedError

Build = Callable[..., Any]
ERROR = RefusedError("concurrency", 429, "no", code="concurrency_limit_exceeded")


class FakeShelf:
    def __init__(self) -> None:
        self.rows: list[Refused] = []

    def put(self, refused: Refused) -> bool:
        self.rows.append(refused)
        return True


def logged(house: Any) -> FakeShelf:
    """Give the house's gate a log."""
    shelf = FakeShelf()
    log = RefusalLog(shelf, house.clock)
    house.gate = Admission(lambda: house.policy, house.meters, house.ledger, house.clock, storage_s=0.01, refusals=log)
    return shelf


def note(house: Any, key_id: str = "k", **fields: Any) -> None:
    house.gate.refused(house.principal(key_id), house.call(**fields), house.arrival(), house.model, ERROR)


def test_a_refusal_is_kept_with_what_was_asked(build: Build) -> None:
    house = build()
    shelf = logged(house)
    note(house, choices=2, max_output_tokens=7)
    (row,) = shelf.rows
    entry = row.entry
    assert (row.rule, row.status, row.error_code) == ("concurrency", 429, "concurrency_limit_exceeded")
    assert (entry.key_id, entry.account_id, entry.tier, entry.model, entry.period) == ("k", "a", "t", "m", "2026-11")
    assert (entry.est_tokens, entry.choices, entry.asked_output_tokens, entry.upstream) == (24, 2, 7, None)
    assert (row.ended, row.duration_ms) == (house.clock.now(), 0)


def test_a_refusal_without_a_bound_has_no_size(build: Build) -> None:
    house = build(bound=None)
    shelf = logged(house)
    note(house)
    assert shelf.rows[0].entry.est_tokens == 0


def test_one_key_does_not_fill_the_log(build: Build) -> None:
    house = build()
    shelf = logged(house)
    for _ in range(3 * MOST_PER_MINUTE):
        note(house)
    assert len(shelf.rows) == MOST_PER_MINUTE
    note(house, key_id="other")
    assert len(shelf.rows) == MOST_PER_MINUTE + 1
    house.clock.advance(1)
    note(house)
    note(house)
    assert len(shelf.rows) == MOST_PER_MINUTE + 2


def test_of_a_model_that_is_not_there_nothing_is_kept(build: Build) -> None:
    house = build()
    shelf = logged(house)
    house.gate.refused(house.principal(), house.call(model="x" * 5000), house.arrival(), None, ERROR)
    assert shelf.rows == []


def test_of_a_tier_that_is_gone_nothing_is_kept(build: Build) -> None:
    house = build()
    shelf = logged(house)
    house.policy = Policy(tiers={}, revision="1" * 12)
    note(house)
    assert shelf.rows == []


def test_without_a_log_nothing_is_kept(build: Build) -> None:
    note(build())
