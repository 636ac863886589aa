"""What takes too long is interrupted where it is, what is in time is not, and nothing arrives late."""

import contextlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sidecar.tokenizer.deadline import DeadlineError, Deadlines


def spin(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


def test_what_has_no_end_is_interrupted() -> None:
    with pytest.raises(DeadlineError, match=r"more than 0\.1 s"), Deadlines().within(0.1):
        spin(math.inf)


def test_no_handler_on_the_way_keeps_the_interruption() -> None:
    def forgive() -> None:
        while True:
            with contextlib.suppress(Exception):
                spin(0.01)

    with pytest.raises(DeadlineError), Deadlines().within(0.1):
        forgive()


def test_what_is_in_time_is_left_alone_and_so_is_what_comes_after() -> None:
    deadlines = Deadlines()
    with deadlines.within(0.1):
        assert spin(0.0) == "done"
    assert spin(0.3) == "done"


def test_an_error_of_its_own_goes_on() -> None:
    with pytest.raises(ZeroDivisionError), Deadlines().within(1.0):
        _ = 1 // 0


def test_of_many_at_once_only_the_late_ones_are_interrupted() -> None:
    deadlines = Deadlines()

    def work(seconds: float) -> str:
        try:
            with deadlines.within(0.5):
                return spin(seconds)
        except DeadlineError:
            return "late"

    # The threads share an interpreter, so that those in time need some time, too.
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(work, [0.0, 60.0] * 8))
    assert found == ["done", "late"] * 8


def test_an_interruption_that_is_on_its_way_at_the_end_does_not_arrive_in_what_comes_after() -> None:
    """Ends at about the time that the deadline comes, many times over."""
    deadlines = Deadlines()
    ended: list[str] = []

    def work(places: int) -> None:
        for place in range(places):
            try:
                with deadlines.within(0.1):
                    spin(0.1 + place % 7 * 0.01)
                ended.append("done")
            except DeadlineError:
                ended.append("late")

    threads = [threading.Thread(target=work, args=(7,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 28
