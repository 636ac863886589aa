"""Places for connections: never more than there are, one for each, and an address cannot take all of them."""

import random

import pytest

from proxy.connections import FILE_RESERVE, WAITING_EACH, Full, Place, Places, fitting


def nobody() -> None:
    raise AssertionError("called to a seat that it has")


def take(places: Places, address: str | None = "192.0.2.1") -> Place:
    place = places.take(address, nobody)
    assert isinstance(place, Place)
    assert place.seated
    return place


def test_w6_there_are_so_many_places_and_no_more() -> None:
    places = Places(2)
    first, _ = take(places), take(places, "192.0.2.2")
    assert places.take("192.0.2.3", nobody) is Full.CONNECTIONS
    first.leave()
    first.leave()
    assert places.taken == 1
    take(places, "192.0.2.3")


def test_w6_strangers_of_one_address_leave_places_for_others() -> None:
    places = Places(100, 2)
    for _ in range(2):
        take(places)
    for _ in range(2 * WAITING_EACH):
        waiting = places.take("192.0.2.1", nobody)
        assert isinstance(waiting, Place)
        assert not waiting.seated
    assert places.take("192.0.2.1", nobody) is Full.ADDRESS
    take(places, "192.0.2.2")


def test_w6_a_connection_with_a_key_counts_for_no_address() -> None:
    places = Places(100, 1)
    for _ in range(20):
        place = take(places)
        place.known()
        place.known()
    assert (places.taken, places.strangers) == (20, 0)


def test_a_seat_that_is_free_goes_to_who_waits_the_longest() -> None:
    called: list[str] = []
    places = Places(100, 1)
    sitting = take(places)
    first = places.take("192.0.2.1", lambda: called.append("first"))
    second = places.take("192.0.2.1", lambda: called.append("second"))
    third = places.take("192.0.2.1", lambda: called.append("third"))
    assert isinstance(first, Place)
    assert isinstance(second, Place)
    assert isinstance(third, Place)
    second.leave()
    sitting.known()
    assert (called, first.seated, third.seated) == (["first"], True, False)
    first.leave()
    assert called == ["first", "third"]
    third.leave()
    sitting.leave()
    assert (places.taken, places.strangers) == (0, 0)


def test_who_speaks_for_many_is_counted_among_all_only() -> None:
    places = Places(3, 1)
    for _ in range(3):
        take(places, None)
    assert places.take(None, nobody) is Full.CONNECTIONS


def test_w6_without_memory_nobody_is_taken() -> None:
    assert Places(10, 5, lambda: True).take("192.0.2.1", nobody) is Full.MEMORY


@pytest.mark.parametrize("seed", range(20))
def test_w6_whatever_happens_the_counts_are_right(seed: int) -> None:
    """Comes, is known, leaves, in any order: as many seats as taken, none lost, none given twice."""
    rng, places = random.Random(seed), Places(30, 3)
    present: dict[Place, str] = {}
    known: set[Place] = set()
    for _ in range(2000):
        what = rng.random()
        if what < 0.5:
            address = f"192.0.2.{rng.randrange(4)}"
            place = places.take(address, lambda: None)
            if isinstance(place, Place):
                present[place] = address
        elif present:
            place = rng.choice(list(present))
            if what < 0.7 and place.seated:
                place.known()
                known.add(place)
            elif what >= 0.7:
                place.leave()
                del present[place]
        strangers = [place for place in present if place not in known]
        assert places.taken == len(present) <= 30
        assert places.strangers == len(strangers)
        for address in set(present.values()):
            mine = [place.seated for place in strangers if present[place] == address]
            # Nobody waits while a seat is free.
            assert sum(mine) == min(3, len(mine))
    for place in list(present):
        place.leave()
    assert (places.taken, places.strangers, places._seated, places._waiting) == (0, 0, {}, {})


@pytest.mark.parametrize(
    ("most", "files", "fit"),
    [(4096, -1, 4096), (4096, 1 << 20, 4096), (4096, 1024, (1024 - FILE_RESERVE) // 2), (4096, 10, 1), (5, 1024, 5)],
)
def test_w6_files_are_kept_back(most: int, files: int, fit: int) -> None:
    assert fitting(most, files) == fit
