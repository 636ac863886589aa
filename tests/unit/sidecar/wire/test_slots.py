import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.wire.slots import RequestUsage, SequenceUsage, SlotFileError, SlotReader, SlotWriter


def test_a_reader_follows_the_count_of_a_running_sequence(tmp_path: Path) -> None:
    writer = SlotWriter(tmp_path / "slots", capacity=4)
    place = writer.claim("req_a", 0, prompt_tokens=12)
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.usage("req_a") == RequestUsage(12, 0, running=True)
        writer.count(place, 5)
        assert reader.usage("req_a") == RequestUsage(12, 5, running=True)
        writer.end(place, 4)
        assert reader.usage("req_a") == RequestUsage(12, 4, running=False)
        assert reader.usage("req_b") is None


def test_a_request_of_two_choices_counts_its_prompt_once(tmp_path: Path) -> None:
    writer = SlotWriter(tmp_path / "slots", capacity=4)
    second = writer.claim("req_a", 1, prompt_tokens=0)
    first = writer.claim("req_a", 0, prompt_tokens=12)
    writer.end(first, 3)
    writer.count(second, 7)
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.sequences("req_a") == [
            SequenceUsage(0, 12, 3, running=False),
            SequenceUsage(1, 0, 7, running=True),
        ]
        assert reader.usage("req_a") == RequestUsage(12, 10, running=True)


def test_an_id_is_not_found_by_its_prefix(tmp_path: Path) -> None:
    writer = SlotWriter(tmp_path / "slots", capacity=4)
    writer.claim("req_ab", 0, prompt_tokens=1)
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.usage("req_a") is None


def test_a_new_engine_ends_what_the_old_one_left_running_and_keeps_its_counts(tmp_path: Path) -> None:
    old = SlotWriter(tmp_path / "slots", capacity=4)
    old.count(old.claim("req_a", 0, prompt_tokens=12), 5)
    old.close()
    new = SlotWriter(tmp_path / "slots", capacity=4)
    new.claim("req_b", 0, prompt_tokens=1)
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.usage("req_a") == RequestUsage(12, 5, running=False)
        assert reader.usage("req_b") == RequestUsage(1, 0, running=True)


def test_places_are_reused_oldest_ended_first_and_the_loss_is_dated(tmp_path: Path) -> None:
    made = time.time_ns()
    writer = SlotWriter(tmp_path / "slots", capacity=2)
    before = time.time_ns()
    for name in ("req_a", "req_b"):
        writer.end(writer.claim(name, 0, prompt_tokens=1), 1)
    with SlotReader(tmp_path / "slots") as reader:
        assert made <= reader.heartbeat().evicted_ns <= before
        writer.claim("req_c", 0, prompt_tokens=1)
        assert reader.usage("req_a") is None
        assert reader.usage("req_b") is not None
        assert before <= reader.heartbeat().evicted_ns <= time.time_ns()


def test_a_claim_with_every_place_running_is_refused(tmp_path: Path) -> None:
    writer = SlotWriter(tmp_path / "slots", capacity=1)
    writer.claim("req_a", 0, prompt_tokens=1)
    with pytest.raises(SlotFileError, match="all 1 usage slots are running"):
        writer.claim("req_b", 0, prompt_tokens=1)


def test_an_id_longer_than_its_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer than 40"):
        SlotWriter(tmp_path / "slots", capacity=1).claim("x" * 41, 0, prompt_tokens=1)


def test_the_heartbeat_tells_pid_step_and_time(tmp_path: Path) -> None:
    writer = SlotWriter(tmp_path / "slots", capacity=1)
    before = time.monotonic_ns()
    writer.beat(42)
    with SlotReader(tmp_path / "slots") as reader:
        beat = reader.heartbeat()
    assert (beat.pid, beat.step) == (os.getpid(), 42)
    assert before <= beat.monotonic_ns <= time.monotonic_ns()


def test_f2_the_last_word_is_said_when_no_engine_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    writer = SlotWriter(path, capacity=2)
    with SlotReader(path) as reader, SlotReader(path) as other:
        # Looking does not get in each other's way, nor in the writer's.
        assert (reader.is_written, other.is_written) == (True, True)
        writer.claim("req_a", 0, prompt_tokens=3)
        writer.close()
        assert (reader.is_written, other.is_written) == (False, False)
        assert reader.usage("req_a") == RequestUsage(3, 0, running=True)
        later = SlotWriter(path, capacity=2)
        assert reader.is_written
        later.close()


def test_f2_an_engine_takes_over_when_the_one_before_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slots"
    old = SlotWriter(path, capacity=2)
    place = old.claim("req_a", 0, prompt_tokens=3)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        """The old one's last step, while the new one waits."""
        naps.append(seconds)
        old.count(place, len(naps))
        if len(naps) == 3:
            old.close()

    monkeypatch.setattr("sidecar.wire.slots.time.sleep", nap)
    SlotWriter(path, capacity=2).close()
    assert len(naps) == 3
    with SlotReader(path) as reader:
        assert reader.usage("req_a") == RequestUsage(3, 3, running=False)


def test_an_engine_does_not_wait_for_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.wire.slots.HANDOVER_S", 0.0)
    old = SlotWriter(tmp_path / "slots", capacity=2)
    old.claim("req_a", 0, prompt_tokens=3)
    SlotWriter(tmp_path / "slots", capacity=2).close()
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.usage("req_a") == RequestUsage(3, 0, running=False)
    old.close()


@pytest.mark.parametrize("content", [b"", b"short", b"NOTSLOTS" + bytes(120)])
def test_another_file_is_not_read_as_slots(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slots"
    path.write_bytes(content)
    with pytest.raises(SlotFileError):
        SlotReader(path)
    with pytest.raises(SlotFileError):
        SlotReader(tmp_path / "absent")


def test_a_file_of_another_shape_is_made_anew(tmp_path: Path) -> None:
    SlotWriter(tmp_path / "slots", capacity=2).claim("req_a", 0, prompt_tokens=1)
    SlotWriter(tmp_path / "slots", capacity=3)
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.usage("req_a") is None


@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=60))
def test_every_running_count_is_what_was_last_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("slots") / "slots"
    writer = SlotWriter(path, capacity=6)
    places: dict[int, int] = {}
    counts: dict[int, int] = {}
    for name, tokens in steps:
        if name not in places:
            places[name] = writer.claim(f"req_{name}", 0, prompt_tokens=name)
        counts[name] = counts.get(name, 0) + tokens
        writer.count(places[name], counts[name])
    with SlotReader(path) as reader:
        assert {name: reader.usage(f"req_{name}") for name in counts} == {
            name: RequestUsage(name, count, running=True) for name, count in counts.items()
        }
    writer.close()
