import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.frames import (
    MAX_FRAME_BYTES,
    Cancel,
    Command,
    Delta,
    Failed,
    Finish,
    FrameReader,
    FrameTooLargeError,
    Report,
    Sampling,
    Shutdown,
    Step,
    Submit,
    encode_frame,
)

SUBMIT = Submit(
    request_id="req_1",
    index=0,
    prompt_ids=[1, 2, 3],
    max_new_tokens=4,
    sampling=Sampling(temperature=0.5, seed=2**64 - 1),
    stop_token_ids=[2],
)


@given(st.lists(st.integers(1, 20), max_size=40))
def test_frames_survive_any_split_of_the_stream(cuts: list[int]) -> None:
    sent: list[Command] = [SUBMIT, Cancel("req_1", 0, generated=3), Shutdown()]
    stream = b"".join(encode_frame(message) for message in sent)
    reader: FrameReader[Command] = FrameReader(Command)
    got: list[Command] = []
    for cut in cuts:
        got += reader.feed(stream[:cut])
        stream = stream[cut:]
    got += reader.feed(stream)
    assert got == sent


def test_a_step_keeps_its_deltas() -> None:
    step = Step(
        number=7,
        deltas=[Delta("req_1", 0, [5], 1), Delta("req_1", 1, [], 3, Finish.ERROR, "NaN logits")],
        running=2,
        waiting=0,
        prefill_tokens=3,
        decode_tokens=1,
        kv_used_tokens=9,
        kv_capacity_tokens=100,
        forward_s=0.02,
        total_s=0.021,
    )
    assert FrameReader(Report).feed(encode_frame(step)) == [step]


def test_c9_a_length_above_the_maximum_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(FrameTooLargeError, match=str(MAX_FRAME_BYTES + 1)):
        FrameReader(Report).feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_a_frame_of_the_other_direction_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        FrameReader(Command).feed(encode_frame(Failed("no memory")))
