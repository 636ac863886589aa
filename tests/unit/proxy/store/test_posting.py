from collections import Counter
from typing import Any

from proxy.store.posting import Booked, Posting, Reserved, Shrunk, State
from proxy.store.standing import Monthly, Standing

AT = ("key_a", "2026-11")


def booked(state: str = State.RESERVED, est_tokens: int = 100) -> Booked:
    return Booked(state, est_tokens, *AT, "acc")


def test_a_reservation_is_set_aside(make: Any) -> None:
    posting = Posting({})
    posting.post(Reserved(make.entry("a", 100), "boot"))
    assert [reserved.request_id for reserved in posting.reserved] == ["a"]
    assert posting.moves == {AT: Counter(reserved_tokens=100, reserved_requests=1)}


def test_a_reservation_that_comes_again_changes_nothing(make: Any) -> None:
    posting = Posting({"a": booked()})
    posting.post(Reserved(make.entry("a", 100), "boot"))
    posting.post(Reserved(make.entry("b", 7), "boot"))
    posting.post(Reserved(make.entry("b", 9), "boot"))
    assert [reserved.entry.est_tokens for reserved in posting.reserved] == [7]
    assert posting.moves == {AT: Counter(reserved_tokens=7, reserved_requests=1)}


def test_a_reservation_shrinks_and_never_grows() -> None:
    posting = Posting({"a": booked(est_tokens=100)})
    for est_tokens in (80, 60, 60, 80, 101):
        posting.post(Shrunk("a", est_tokens))
    assert posting.shrunk == {"a": 60}
    assert posting.moves == {AT: Counter(reserved_tokens=-40)}


def test_an_end_frees_what_is_reserved_by_then_and_charges_what_was_used(make: Any) -> None:
    posting = Posting({"a": booked(est_tokens=100)})
    posting.post(Shrunk("a", 40))
    posting.post(make.settled("a", prompt=10, completion=5, cached_tokens=4))
    assert posting.moves[AT] == {
        "reserved_tokens": -60 - 40,
        "reserved_requests": -1,
        "settled_tokens": 15,
        "settled_requests": 1,
        "settled_prompt_tokens": 10,
        "settled_cached_tokens": 4,
    }


def test_a_void_end_charges_nothing(make: Any) -> None:
    posting = Posting({"a": booked(est_tokens=100)})
    posting.post(make.voided("a"))
    assert posting.moves == {AT: Counter(reserved_tokens=-100, reserved_requests=-1)}
    assert [end.state for end in posting.ended] == [State.VOID]


def test_a_forced_end_is_charged_and_marked(make: Any) -> None:
    posting = Posting({"a": booked(est_tokens=100)})
    posting.post(make.settled("a", prompt=60, completion=40, forced=True))
    assert posting.moves[AT]["settled_tokens"] == 100
    assert [end.state for end in posting.ended] == [State.FORCED]


def test_a_row_ends_once(make: Any) -> None:
    for state in (State.SETTLED, State.VOID, State.FORCED):
        posting = Posting({"a": booked(state)})
        for late in (make.settled("a"), make.voided("a"), Shrunk("a", 1)):
            posting.post(late)
        assert (posting.ended, posting.shrunk, posting.moves) == ([], {}, {})
    posting = Posting({"a": booked()})
    for end in (make.voided("a"), make.settled("a"), make.voided("a")):
        posting.post(end)
    assert [end.state for end in posting.ended] == [State.VOID]


def test_what_was_never_reserved_does_not_end(make: Any) -> None:
    posting = Posting({})
    for stray in (Shrunk("a", 1), make.settled("a"), make.voided("a")):
        posting.post(stray)
    assert (posting.ended, posting.shrunk, posting.moves) == ([], {}, {})


def test_each_key_and_period_has_counters_of_its_own(make: Any) -> None:
    posting = Posting({})
    posting.post(Reserved(make.entry("a", 1), "boot"))
    posting.post(Reserved(make.entry("b", 2, key_id="key_b"), "boot"))
    posting.post(Reserved(make.entry("c", 4, period="2026-12"), "boot"))
    reserved = {at: counter["reserved_tokens"] for at, counter in posting.moves.items()}
    assert reserved == {("key_a", "2026-11"): 1, ("key_b", "2026-11"): 2, ("key_a", "2026-12"): 4}


def test_a_reservation_fits_its_limits_to_the_last_token_and_no_further(make: Any) -> None:
    standing = Standing(settled_tokens=50, reserved_tokens=20, settled_requests=1, reserved_requests=1)
    posting = Posting({}, {AT: standing})
    for name, tokens in (("a", 31), ("b", 20), ("c", 11), ("d", 10), ("e", 1)):
        posting.post(Reserved(make.entry(name, tokens), "boot", limits=Monthly(monthly_tokens=100)))
    assert [reserved.request_id for reserved in posting.reserved] == ["b", "d"]
    assert {name: (error.used, error.requested) for name, error in posting.refused.items()} == {
        "a": (70, 31), "c": (90, 11), "e": (100, 1),
    }  # fmt: skip
    assert posting.moves == {AT: Counter(reserved_tokens=30, reserved_requests=2)}


def test_what_others_give_back_in_the_same_batch_may_be_taken(make: Any) -> None:
    limits = Monthly(monthly_requests=2, monthly_tokens=100)
    posting = Posting({"a": booked(est_tokens=100)}, {AT: Standing(reserved_tokens=100, reserved_requests=1)})
    posting.post(Reserved(make.entry("b", 90), "boot", limits=limits))
    posting.post(make.settled("a", prompt=6, completion=4))
    posting.post(Reserved(make.entry("b", 90), "boot", limits=limits))
    posting.post(Reserved(make.entry("c", 0), "boot", limits=limits))
    assert [reserved.request_id for reserved in posting.reserved] == ["b"]
    assert {name: error.rule for name, error in posting.refused.items()} == {"c": "monthly_requests"}


def test_the_keys_of_an_account_share_what_is_the_accounts(make: Any) -> None:
    account = {("acc", "2026-11"): Standing(settled_tokens=80)}
    posting = Posting({}, {}, account)
    limits = Monthly(account_monthly_tokens=100, account_monthly_requests=2)
    for name, key_id, tokens in (("a", "key_a", 15), ("b", "key_b", 6), ("c", "key_b", 5), ("d", "key_a", 0)):
        posting.post(Reserved(make.entry(name, tokens, key_id), "boot", limits=limits))
    assert [reserved.request_id for reserved in posting.reserved] == ["a", "c"]
    assert {name: error.rule for name, error in posting.refused.items()} == {
        "b": "account_monthly_tokens", "d": "account_monthly_requests",
    }  # fmt: skip
