"""What /v1/responses and /v1/messages tell of an answer is the same streamed and whole, however it comes, and in order.

Words, thoughts and calls; log-probabilities; answers that a limit cuts anywhere.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import responses as sdk
from pydantic import TypeAdapter

from sidecar.protocol.anthropic_answer import MessageShape
from sidecar.protocol.anthropic_stream import MessageStream
from sidecar.protocol.choices import Choices, Telling
from sidecar.protocol.response_answer import ResponseShape
from sidecar.protocol.response_stream import ResponseStream
from sidecar.protocol.speech.dialect import Speech
from sidecar.protocol.speech.listener import calls_of
from sidecar.protocol.stream import whole
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.frames import Delta, Finish, Logprobs
from tests.unit.sidecar.protocol.test_response_stream import ASKED, HEAD, PLAIN
from tests.unit.sidecar.protocol.test_stream_laws import ANSWERS, SPEECHES, STOPS, decode

RESPONSES = ResponseShape(HEAD, ASKED, lambda token, *, begins=False: chr(token).encode())
# As where a call was asked for by name.
SPEECH = Speech(thinks=True, tools="hermes", offered={"f": {}, "g": {}}, calls_reason="stop")
EVENT: TypeAdapter[Any] = TypeAdapter(sdk.ResponseStreamEvent)

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "ü}"}}\n</tool_call>'
calls = st.sampled_from([CALL, '<tool_call>{"name": "g"}</tool_call>', '<tool_call>{"name": "h"}</tool_call>'])
words = st.sampled_from(["a", " ", "\n\n", "Yes.", "<tool", "<think>", "ü"])
thoughts = st.sampled_from(["", "<think>hm\nhm</think>\n\n", "<think></think>", " <think> ", "<think>t"])
answers = st.tuples(thoughts, st.lists(calls | words, max_size=6).map("".join)).map("".join)
cuts = st.lists(st.integers(1, 40), max_size=8)
ends = st.sampled_from([Finish.STOP, Finish.LENGTH])
MOST = 30


def heard(
    ids: list[int],
    sizes: list[int],
    finish: Finish,
    make: Callable[[Choices], Any],
    choices: Choices | None = None,
) -> tuple[bytes, Choices]:
    """The stream of tokens that come in pieces of these sizes and then one by one, and its choice; of letters, unless
    there is a choice for others.
    """
    made = choices or Choices(
        1, lambda _: Detokenizer(letters, frozenset()), (), (0,), (Telling(logprobs=True),), speech=SPEECH
    )
    stream = make(made)
    sent, at = b"", 0
    sizes = list(sizes)
    while at < len(ids) and not made.ended:
        some = ids[at : at + (sizes.pop(0) if sizes else 1)]
        at += len(some)
        sent += stream.feed(made.take(Delta("req_1", 0, some, at, logprobs=[Logprobs(-0.5, [], []) for _ in some])))
    if not made.ended:
        sent += stream.feed(made.take(Delta("req_1", 0, [], at, finish)))
    return sent + stream.end(), made


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def documents(sent: bytes) -> list[dict[str, Any]]:
    return [json.loads(frame.partition("\ndata: ")[2]) for frame in sent.decode().removesuffix("\n\n").split("\n\n")]


def read_responses(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that a reader of the events makes, each of which must be added, told and done before the next."""
    items: list[dict[str, Any]] = []
    said, told = "", []
    for event in events[2:-1]:
        kind, _, step = event["type"].removeprefix("response.").rpartition(".")
        assert event["output_index"] == len(items) - (step != "added" or kind != "output_item")
        if (kind, step) == ("output_item", "added"):
            assert not items or "done" in items[-1]
            items.append({"begun": event["item"]})
            said, told = "", []
            continue
        item = items[-1]
        assert "done" not in item
        assert event.get("item_id", item["begun"]["id"]) == item["begun"]["id"]
        if step == "delta":
            said += event["delta"]
            told += event.get("logprobs", [])
        elif step == "done" and kind not in ("content_part", "output_item"):
            assert said == event.get("text", event.get("arguments"))
            assert told == event.get("logprobs", [])
        elif (kind, step) == ("output_item", "done"):
            item["done"] = event["item"]
            assert {name: event["item"][name] for name in ("id", "type")} == {
                name: item["begun"][name] for name in ("id", "type")
            }
    assert all("done" in item for item in items)
    return [item["done"] for item in items]


@settings(max_examples=MOST)
@given(answer=answers, sizes=cuts, finish=ends)
def test_a_response_s_items_are_those_of_the_whole_one(answer: str, sizes: list[int], finish: Finish) -> None:
    sent, choices = heard([*map(ord, answer)], sizes, finish, lambda made: ResponseStream(RESPONSES, made, 5, PLAIN))
    events = documents(sent)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    document = json.loads(whole(RESPONSES, choices, 5))
    assert events[-1] == {
        "type": f"response.{document['status']}",
        "sequence_number": len(events) - 1,
        "response": document,
    }
    items = read_responses(events)
    assert items == document["output"]
    assert len({item["id"] for item in items}) == len(items) > 0
    assert (document["status"] == "incomplete") is (finish is Finish.LENGTH)
    for item in items[:-1]:
        assert item.get("status", "completed") == "completed"
    texts = [part for item in items if item["type"] == "message" for part in item["content"]]
    assert "".join(part["text"] for part in texts) == choices.all[0].text
    for part in texts:
        spelt = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode()
        # White space at the end of an answer with calls is not shown, and white space at the ends of tokens is.
        assert spelt.startswith(part["text"])
        assert not spelt[len(part["text"]) :].strip()


def test_each_event_is_valid_to_openai_s_client() -> None:
    ids = [*map(ord, f"<think>hm</think>\nI look. {CALL}Then.")]
    sent, choices = heard(ids, [], Finish.STOP, lambda made: ResponseStream(RESPONSES, made, 5, PLAIN))
    for event in documents(sent):
        assert EVENT.validate_python(event, strict=False).type == event["type"]
    response = sdk.Response.model_validate_json(whole(RESPONSES, choices, 5))
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "message"]
    assert [item.id for item in response.output] == ["rs_1", "msg_1_1", "fc_1_2", "msg_1_3"]
    assert response.output_text == "I look.Then."


def read_messages(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a reader of the events makes, each of which must end before the next one begins."""
    blocks: list[dict[str, Any]] = []
    ended = arguments = ""
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert ended == ("content_block_stop" if blocks else "")
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            arguments = ""
        elif event["type"] == "content_block_delta":
            assert (ended, event["index"]) == ("content_block_start", len(blocks) - 1)
            kind = event["delta"].pop("type")
            ((name, more),) = event["delta"].items()
            if kind == "input_json_delta":
                arguments += more
            else:
                assert kind == f"{blocks[-1]['type']}_delta"
                blocks[-1][name] += more
            continue
        else:
            assert (event["type"], event["index"]) == ("content_block_stop", len(blocks) - 1)
            if blocks[-1]["type"] == "tool_use":
                assert blocks[-1]["input"] == {}
                blocks[-1]["input"] = parsed(arguments)
        ended = event["type"]
    assert ended == "content_block_stop"
    return blocks


def parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


@settings(max_examples=MOST)
@given(answer=answers, sizes=cuts, finish=ends, thinking=st.booleans())
def test_a_message_s_blocks_are_those_of_the_whole_one(
    answer: str, sizes: list[int], finish: Finish, thinking: bool
) -> None:
    shape = MessageShape(HEAD, thinking)
    sent, choices = heard([*map(ord, answer)], sizes, finish, lambda made: MessageStream(shape, made, 5, PLAIN))
    events = documents(sent)
    assert [event["type"] for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    document = json.loads(whole(shape, choices, 5))
    blocks = read_messages(events)
    assert blocks == document["content"] != []
    assert events[-2]["delta"] == {name: document[name] for name in ("stop_reason", "stop_sequence")}
    called = [block for block in blocks if block["type"] == "tool_use"]
    assert len({block["id"] for block in called}) == len(called) == len(calls_of(choices.all[0].parts))
    expected = "max_tokens" if finish is Finish.LENGTH else "tool_use" if called else "end_turn"
    assert document["stop_reason"] == expected
    assert "".join(block["text"] for block in blocks if block["type"] == "text") == choices.all[0].text
    thought = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    assert thought == (choices.all[0].thought if thinking else "")


@pytest.mark.parametrize("speech", SPEECHES)
@settings(max_examples=MOST)
@given(answer=ANSWERS, sizes=cuts, finish=ends, stop=st.booleans())
def test_in_any_form_both_tell_the_same_streamed_and_whole(
    speech: Speech | None, answer: bytes, sizes: list[int], finish: Finish, stop: bool
) -> None:
    def choices() -> Choices:
        stops, told = STOPS if stop else (), (Telling(logprobs=True),)
        return Choices(1, lambda _: Detokenizer(decode, frozenset()), stops, (), told, speech=speech)

    response, message = ResponseShape(HEAD, ASKED, lambda token, *, begins=False: bytes([token])), MessageShape(HEAD)
    sent, made = heard([*answer], sizes, finish, lambda made: ResponseStream(response, made, 5, PLAIN), choices())
    events = documents(sent)
    assert read_responses(events) == events[-1]["response"]["output"] == json.loads(whole(response, made, 5))["output"]
    sent, made = heard([*answer], sizes, finish, lambda made: MessageStream(message, made, 5, PLAIN), choices())
    assert read_messages(documents(sent)) == json.loads(whole(message, made, 5))["content"]
