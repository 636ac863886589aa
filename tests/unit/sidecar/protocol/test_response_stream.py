"""The events of /v1/responses in order and by number, and the whole object, as OpenAI's own client reads them."""

import json
from typing import Any

import pytest
from openai.types import responses as sdk
from pydantic import TypeAdapter

from sidecar.protocol.answer import Head
from sidecar.protocol.choices import Choices, Telling
from sidecar.protocol.requests import Asked, TextSettings
from sidecar.protocol.response_answer import ResponseShape
from sidecar.protocol.response_stream import ResponseStream
from sidecar.protocol.stream import StreamOptions, whole
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import unavailable
from sidecar.wire.frames import Delta, Finish, Logprobs

HEAD = Head("req_1", 1700000000, "m", "fp_1", echo_service_tier=False)
ASKED = Asked(
    instructions="i",
    max_output_tokens=9,
    max_tool_calls=None,
    metadata={"a": "b"},
    parallel_tool_calls=True,
    prompt_cache_key=None,
    reasoning_effort="low",
    reasoning_summary=None,
    safety_identifier=None,
    temperature=0.5,
    tool_choice="auto",
    tools=(),
    top_logprobs=0,
    top_p=1.0,
    user=None,
    text=TextSettings("medium", {"type": "text"}),
)
SHAPE = ResponseShape(HEAD, ASKED)
PLAIN = StreamOptions(comment=False, include_usage=False, continuous_usage=False)
USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 7,
}
BEGUN = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1700000000,
    "status": "in_progress",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": "i",
    "max_output_tokens": 9,
    "max_tool_calls": None,
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": "low", "summary": None},
    "safety_identifier": None,
    "store": False,
    "temperature": 0.5,
    "text": {"verbosity": "medium", "format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "metadata": {"a": "b"},
}
TEXT = {"type": "output_text", "text": "yo", "annotations": [], "logprobs": []}


def one_choice(telling: Telling | None = None) -> Choices:
    tellings = () if telling is None else (telling,)
    return Choices(1, lambda _: Detokenizer(lambda ids: "".join(map(chr, ids)), frozenset()), (), (), tellings)


def deltas(finish: Finish) -> list[Delta]:
    first = Delta("req_1", 0, [ord("y")], 1, logprobs=[Logprobs(-0.5, [98], [-0.25])], cached_tokens=3)
    return [first, Delta("req_1", 0, [ord("o")], 2, finish, logprobs=[Logprobs(-1.0, [99], [-0.125])])]


def told(finish: Finish = Finish.STOP, options: StreamOptions = PLAIN) -> list[str]:
    """The frames of a stream of "yo"."""
    choices = one_choice()
    stream = ResponseStream(SHAPE, choices, 5, options)
    sent = b"".join([*(stream.feed(choices.take(delta)) for delta in deltas(finish)), stream.end()])
    assert sent.endswith(b"\n\n")
    return sent.decode().removesuffix("\n\n").split("\n\n")


def documents(frames: list[str]) -> list[dict[str, Any]]:
    """The events, each of which must bear its type as its name."""
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def message(status: str, content: list[Any]) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "status": status, "role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("finish", "status", "details"),
    [(Finish.STOP, "completed", None), (Finish.LENGTH, "incomplete", {"reason": "max_output_tokens"})],
)
def test_the_events_are_openai_s_in_openai_s_order(finish: Finish, status: str, details: Any) -> None:
    events = documents(told(finish))
    assert [event.pop("sequence_number") for event in events] == list(range(10))
    item = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    ended = BEGUN | {"status": status, "incomplete_details": details, "usage": USAGE}
    assert events == [
        {"type": "response.created", "response": BEGUN},
        {"type": "response.in_progress", "response": BEGUN},
        {"type": "response.output_item.added", "output_index": 0, "item": message("in_progress", [])},
        {"type": "response.content_part.added", **item, "part": TEXT | {"text": ""}},
        {"type": "response.output_text.delta", **item, "delta": "y", "logprobs": []},
        {"type": "response.output_text.delta", **item, "delta": "o", "logprobs": []},
        {"type": "response.output_text.done", **item, "text": "yo", "logprobs": []},
        {"type": "response.content_part.done", **item, "part": TEXT},
        {"type": "response.output_item.done", "output_index": 0, "item": message(status, [TEXT])},
        {"type": f"response.{status}", "response": ended | {"output": [message(status, [TEXT])]}},
    ]


def test_each_event_and_the_whole_object_are_valid_to_openai_s_client() -> None:
    reader: TypeAdapter[Any] = TypeAdapter(sdk.ResponseStreamEvent)
    for event in documents(told()):
        assert reader.validate_python(event, strict=False).type == event["type"]


def test_the_whole_object_is_the_last_event_s() -> None:
    choices = one_choice()
    for delta in deltas(Finish.STOP):
        choices.take(delta)
    document = json.loads(whole(SHAPE, choices, 5))
    assert document == documents(told())[-1]["response"]
    assert sdk.Response.model_validate(document).output_text == "yo"


def test_the_proxy_s_comment_stands_between_the_text_and_what_is_done() -> None:
    frames = told(options=StreamOptions(comment=True, include_usage=False, continuous_usage=False))
    assert json.loads(frames[6].removeprefix(": tollhouse-usage ")) == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "cached_tokens": 3,
        "finish_reason": "stop",
        "reasoning_tokens": 0,
    }
    assert documents(frames[:6] + frames[7:]) == documents(told())


def test_nothing_but_the_opening_is_sent_for_tokens_without_text() -> None:
    choices = one_choice()
    stream = ResponseStream(SHAPE, choices, 5, PLAIN)
    assert stream.feed(choices.take(Delta("req_1", 0, [], 0))).count(b"event: ") == 2
    assert stream.feed(choices.take(Delta("req_1", 0, [], 0))) == b""


@pytest.mark.parametrize(("fed", "number"), [(0, 1), (1, 5)])
def test_a_failure_is_an_event_after_the_first_one(fed: int, number: int) -> None:
    choices = one_choice()
    stream = ResponseStream(SHAPE, choices, 5, PLAIN)
    sent = b"".join(stream.feed(choices.take(delta)) for delta in deltas(Finish.STOP)[:fed])
    sent += stream.fail(unavailable("It was lost.", code="upstream_unavailable", retry_after_s=1))
    events = documents(sent.decode().removesuffix("\n\n").split("\n\n"))
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.failed")
    assert [event["sequence_number"] for event in events] == list(range(number + 1))
    failure = {"status": "failed", "error": {"code": "server_error", "message": "It was lost."}}
    assert events[-1]["response"] == BEGUN | failure


def test_what_was_asked_for_is_told_back_and_what_was_not_is_left_out() -> None:
    asked = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "max_tool_calls": 2}
    told_back = Asked(**{name: getattr(ASKED, name) for name in ASKED.__struct_fields__} | asked)
    head = Head("req_1", 1700000000, "m", "fp_1", echo_service_tier=True)
    choices = one_choice()
    for delta in deltas(Finish.STOP):
        choices.take(delta)
    document = json.loads(whole(ResponseShape(head, told_back), choices, 5))
    assert {name: document[name] for name in asked} == asked
    assert document["service_tier"] == "default"
    assert {"user", "service_tier", "usage"}.isdisjoint(BEGUN)


def test_log_probabilities_go_with_their_text_and_all_of_them_at_the_end() -> None:
    choices = one_choice(Telling(logprobs=True))
    shape = ResponseShape(HEAD, ASKED, lambda token, *, begins=False: chr(token).encode())
    stream = ResponseStream(shape, choices, 5, PLAIN)
    sent = b"".join([*(stream.feed(choices.take(delta)) for delta in deltas(Finish.STOP)), stream.end()])
    events = documents(sent.decode().removesuffix("\n\n").split("\n\n"))
    first, second = (
        {"token": own, "logprob": value, "bytes": [ord(own)], "top_logprobs": [top]}
        for own, value, top in (
            ("y", -0.5, {"token": "b", "logprob": -0.25, "bytes": [98]}),
            ("o", -1.0, {"token": "c", "logprob": -0.125, "bytes": [99]}),
        )
    )
    assert [event["logprobs"] for event in events[4:7]] == [[first], [second], [first, second]]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [first, second]
