"""What can be seen from here of a sidecar's work: ours to the moment, others' as told, and the pace."""

import pytest

from proxy.load import PACE_OVER_S, Load, Workload, together
from sidecar.wire.internal import State


class Watch:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def state(running: int = 0, waiting: int = 0, *, ready: bool = True) -> State:
    return State(
        ready=ready, reason="", models=[], running=running, waiting=waiting, max_sequences=4, max_queue=16,
        kv_used_tokens=0, kv_capacity_tokens=0, steps=0, engine_pid=1, restarts=0, heartbeat_age_s=0.0, slots_path="",
    )  # fmt: skip


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def workload(watch: Watch) -> Workload:
    return Workload(watch)


def test_ours_are_known_to_the_moment(workload: Workload) -> None:
    workload.told(state())
    with workload.running(3), workload.running(1):
        assert workload.load == Load(4, 4, 16, 0.0)
    assert workload.load.sequences == 0


def test_those_of_others_are_what_it_was_told_twice(workload: Workload) -> None:
    with workload.running(2):
        workload.told(state(4, 6))
        # Some of these may be ours that have just ended.
        assert workload.load.sequences == 2
        workload.told(state(4, 3))
        assert workload.load.sequences == 7
        with workload.running(5):
            assert workload.load.sequences == 12
        workload.told(state(2))
        assert workload.load.sequences == 2


@pytest.mark.parametrize("gone", [None, state(ready=False)])
def test_a_sidecar_that_is_not_ready_has_room_for_nothing(workload: Workload, gone: State | None) -> None:
    workload.told(state(1))
    workload.told(gone)
    with workload.running(1):
        assert workload.load == Load(0, 0, 0, 0.0)


def test_the_pace_is_that_of_the_last_half_minute(workload: Workload, watch: Watch) -> None:
    workload.told(state())
    for _ in range(20):
        with workload.running(2):
            watch.now_s += 0.5
    assert workload.load.per_s == pytest.approx(40 / 9.5)
    watch.now_s += PACE_OVER_S - 0.2
    assert workload.load.per_s == pytest.approx(2 / (PACE_OVER_S - 0.2))
    watch.now_s += 1
    assert workload.load.per_s == 0


def test_what_ends_by_an_error_says_nothing_of_the_pace(workload: Workload) -> None:
    workload.told(state())
    with pytest.raises(ZeroDivisionError), workload.running(1):
        raise ZeroDivisionError
    assert workload.load == Load(0, 4, 16, 0.0)


def test_two_that_end_together_are_not_endlessly_fast(workload: Workload) -> None:
    workload.told(state())
    with workload.running(1), workload.running(1):
        pass
    assert workload.load.per_s == 2


def test_several_sidecars_are_as_one() -> None:
    assert together([Load(1, 2, 3, 0.5), Load(10, 20, 30, 1.5)]) == Load(11, 22, 33, 2.0)
    assert together([]) == Load(0, 0, 0, 0)
