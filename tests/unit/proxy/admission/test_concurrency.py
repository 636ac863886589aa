"""Leases: taken, counted, and given back exactly once."""

from proxy.admission.concurrency import Leases


def test_as_many_fit_as_the_limit_says() -> None:
    leases = Leases()
    first = leases.take("k")
    assert leases.peek("k", 2).fits
    leases.take("k")
    look = leases.peek("k", 2)
    assert (look.fits, look.running, look.limit) == (False, 2, 2)
    first.release()
    assert leases.peek("k", 2).fits


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
    assert not leases.peek("a", 1).fits
    assert leases.peek("b", 1).fits
    assert len(leases) == 1


def test_without_a_limit_everything_fits_and_is_counted() -> None:
    leases = Leases()
    taken = [leases.take("k") for _ in range(100)]
    assert leases.peek("k", None).fits
    for lease in taken:
        lease.release()
    assert len(leases) == 0
