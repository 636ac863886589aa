"""The laws of streams: put together as an SDK does it, they are the whole answer, and that is what its tokens say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.protocol.answer import ChatShape, Head, TextShape
from sidecar.protocol.choices import Choices
from sidecar.protocol.speech.dialect import FORMS, Speech
from sidecar.protocol.stream import Shape, Stream, StreamOptions, whole
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.frames import Delta, Finish

# A token for each byte, so that characters, markers and stop strings are split anywhere; the end has no text.
EOS = 256
HEAD = Head("req_1", 1700000000, "m", "fp_1", echo_service_tier=False)
OPTIONS = StreamOptions(comment=False, include_usage=True, continuous_usage=False)
STOPS = ("STOP", "日本", "}}")
CALL = '{"name": "f", "arguments": {"a": "é}\\"", "b": [1, {}]}}'
FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|tool_call|>", "<|/tool_call|>"),
            *(CALL, f"[{CALL}]", '{"name": "g", "arguments": {}}', '{"name": "f", "parameters": {}}', "f[ARGS]{}"),
            *(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                ";",
            ),
            *("STOP", "STO", "日本", "日", "😀", "é", "word ", " ", "\n", "{", "}", '"', "<", "\ufffd"),
        ]
    ).map(str.encode),
    st.binary(max_size=3),
)
ANSWERS = st.lists(FRAGMENTS, max_size=8).map(b"".join)
SPEECHES: list[Speech | None] = [
    None,
    Speech(thinks=True),
    Speech(thinks=True, inside=True),
    *(Speech(thinks=True, tools=form, offered={"f": {}}) for form in FORMS),
    Speech(tools="hermes", offered={"f": {}}, one_call=True),
]


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def run(shape: Shape, answer: bytes, cuts: list[int], stops: tuple[str, ...], speech: Speech | None) -> tuple[Any, Any]:
    """The whole answer, and the chunks of its stream, if the engine gives so many tokens at a time."""
    choices = Choices(1, lambda _: Detokenizer(decode, frozenset({EOS})), stops, (EOS,), speech=speech)
    stream = Stream(shape, choices, 5, OPTIONS)
    sent, at = b"", 0
    for size in [*cuts, len(answer)]:
        ids = list(answer[at : at + size])
        at += len(ids)
        if ids and not choices.ended:
            sent += stream.feed(choices.take(Delta("req_1", 0, ids, at)))
    if not choices.ended:
        sent += stream.feed(choices.take(Delta("req_1", 0, [EOS], at + 1, Finish.STOP)))
    sent += stream.end()
    frames = [frame for frame in sent.decode().split("\n\n") if frame]
    assert frames[-1] == "data: [DONE]"
    return json.loads(whole(shape, choices, 5)), [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """As the SDKs do: texts are joined, and calls by their index."""
    found: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": [], "finish_reason": None, "usage": None}
    for chunk in chunks:
        found["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            assert found["finish_reason"] is None
            found["finish_reason"] = choice["finish_reason"]
            delta = choice["delta"]
            found["content"] += delta.get("content") or ""
            found["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(found["calls"]):
                    assert (call["type"], call["function"]["arguments"]) == ("function", "")
                    found["calls"].append([call["id"], call["function"]["name"], ""])
                else:
                    assert set(call) == {"index", "function"}
                    assert set(call["function"]) == {"arguments"}
                    found["calls"][call["index"]][2] += call["function"]["arguments"]
    return found


@pytest.mark.parametrize("speech", SPEECHES)
@given(answer=ANSWERS, cuts=st.lists(st.integers(1, 9), max_size=30), stop=st.booleans())
def test_a_stream_put_together_is_the_whole_answer(
    speech: Speech | None, answer: bytes, cuts: list[int], stop: bool
) -> None:
    answered, chunks = run(ChatShape(HEAD), answer, cuts, STOPS if stop else (), speech)
    (choice,) = answered["choices"]
    message = choice["message"]
    calls = [[call["id"], *call["function"].values()] for call in message.get("tool_calls", ())]
    assert put_together(chunks) == {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content") or "",
        "calls": calls,
        "finish_reason": choice["finish_reason"],
        "usage": answered["usage"],
    }
    again, _ = run(ChatShape(HEAD), answer, [], STOPS if stop else (), speech)
    assert {**again, "usage": None} == {**answered, "usage": None}


@given(answer=ANSWERS, cuts=st.lists(st.integers(1, 9), max_size=30), stop=st.booleans())
def test_a_text_is_what_its_tokens_say_up_to_the_first_stop_string(answer: bytes, cuts: list[int], stop: bool) -> None:
    stops = STOPS if stop else ()
    answered, chunks = run(TextShape(HEAD), answer, cuts, stops, None)
    (choice,) = answered["choices"]
    said = decode(list(answer))
    ends = [at for one in stops if (at := said.find(one)) >= 0]
    assert choice["text"] == (said[: min(ends)] if ends else said)
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == choice["text"]
    assert answered["usage"]["completion_tokens"] <= len(answer) + 1
