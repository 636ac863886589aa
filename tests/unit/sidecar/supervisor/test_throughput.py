"""When a refused client is told to come back."""

from sidecar.supervisor.throughput import Throughput


def test_nothing_known_is_the_shortest_wait() -> None:
    assert Throughput().wait_s(100.0, 5) == 1.0


def test_the_wait_is_the_places_at_the_pace_of_late() -> None:
    pace = Throughput()
    for second in range(10):
        pace.ended(100.0 + second, 2)
    assert pace.wait_s(110.0, 10) == 5.0


def test_an_engine_that_ends_nothing_for_a_while_is_slower() -> None:
    pace = Throughput()
    pace.ended(100.0, 1)
    assert pace.wait_s(110.0, 1) == 10.0
    assert pace.wait_s(120.0, 1) == 20.0


def test_what_is_long_past_does_not_count_and_no_wait_is_too_long() -> None:
    pace = Throughput()
    pace.ended(100.0, 1)
    assert pace.wait_s(150.0, 5) == 60.0
    assert pace.wait_s(161.0, 5) == 1.0


def test_steps_that_end_nothing_are_no_samples() -> None:
    pace = Throughput()
    pace.ended(100.0, 0)
    pace.ended(105.0, 1)
    assert pace.wait_s(107.0, 1) == 2.0
