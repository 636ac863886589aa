"""Stored responses through the proxy: what the tier allows, what is kept, what goes before the next, whose it is."""

import json
from typing import Any

import pytest

from proxy.settings import Limits
from sidecar.wire import internal
from sidecar.wire.internal import Endpoint
from tests.fakes.sidecar import MODEL, usage_comment
from tests.wire.proxy.conftest import Build, on_both
from tests.wire.proxy.house import Answer, House, request

pytestmark = on_both
URL = Endpoint.RESPONSES.value
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}


def text(role: str, kind: str, words: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": words, **more}]}


def response(name: str, words: str = "Hello", **fields: Any) -> dict[str, Any]:
    output = text("assistant", "output_text", words, annotations=[], logprobs=[{"token": words}])
    return {
        "id": f"resp_{name}",
        "object": "response",
        "status": "completed",
        "output": [output],
        "usage": USAGE,
    } | fields


async def ask(house: House, key: str, answer: dict[str, Any], **fields: Any) -> Answer:
    """Have the sidecar answer with a response, in a stream if that is asked for."""
    house.sidecar.whole = json.dumps(answer).encode()
    name = f"response.{answer['status']}"
    last = f"event: {name}\ndata: {json.dumps({'type': name, 'response': answer})}\n\n".encode()
    house.sidecar.script = [b"event: response.created\ndata: {}\n\n", usage_comment(3), last]
    wire = await house.connect()
    await wire.send(request(key, {"model": MODEL, "input": "Hi", "max_output_tokens": 8} | fields, path=URL))
    return await wire.answer()


async def below(house: House, key: str, path: str, method: str = "GET") -> Answer:
    wire = await house.connect()
    await wire.send(request(key, method=method, path=f"{URL}/{path}"))
    return await wire.answer(bodiless=method == "HEAD")


# --- the tier ---


@pytest.mark.parametrize("fields", [{}, {"store": None}, {"store": False}, {"previous_response_id": None}])
async def test_a_tier_that_keeps_nothing_stores_nothing(house: House, fields: dict[str, Any]) -> None:
    key = await house.key()
    assert (await ask(house, key, response("1"), **fields)).status == 200
    (received,) = house.sidecar.received
    assert internal.STORED not in received.headers
    assert not received.body.keys() & {"store", "previous_response_id"}
    assert house.rows("stored_response") == []
    assert (await below(house, key, "resp_1")).status == 404


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_value"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ],
)
async def test_a_tier_that_keeps_nothing_refuses_what_needs_it(
    house: House, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = await ask(house, await house.key(), response("1"), **fields)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert house.sidecar.received == house.rows() == []


@pytest.mark.parametrize(
    ("fields", "stored"), [({}, True), ({"store": None}, True), ({"store": True}, True), ({"store": False}, False)]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_tier_that_keeps_responses_stores_unless_told_not_to(
    house: House, fields: dict[str, Any], stored: bool, stream: bool
) -> None:
    key, told = await house.key("storing"), response("1")
    assert (await ask(house, key, told, stream=stream, **fields)).whole
    # A complete answer implies a stored one: no waiting here.
    rows = house.rows("stored_response")
    assert [json.loads(row["response"]) for row in rows] == ([told] if stored else [])
    assert house.sidecar.received[0].headers.get(internal.STORED) == ("1" if stored else None)
    assert (await below(house, key, "resp_1")).status == (200 if stored else 404)


# --- what is kept ---


async def test_a_response_is_kept_with_its_own_input(house: House) -> None:
    await ask(house, await house.key("storing"), response("1", status="incomplete"), input="Grüße", stream=True)
    (row,) = house.rows("stored_response")
    assert json.loads(row["input"]) == [text("user", "input_text", "Grüße")]
    assert (row["id"], row["previous_id"], row["model"]) == ("resp_1", None, MODEL)
    assert json.loads(row["response"])["status"] == "incomplete"


async def test_a_stream_that_fails_is_not_kept(house: House) -> None:
    key = await house.key("storing")
    house.sidecar.always_produced = 1
    answer = await ask(house, key, response("1", status="failed"), stream=True)
    assert not answer.whole
    assert house.rows("stored_response") == []


async def test_an_answer_that_cannot_be_read_is_not_told_as_stored(house: House) -> None:
    answer = await ask(house, await house.key("storing"), {"status": "completed", "usage": USAGE})
    assert answer.status == 500
    # It ran, and is owed.
    assert (await house.row("settled"))["completion_tokens"] == 3


async def test_a4_nothing_of_the_content_is_logged(house: House) -> None:
    key = await house.key("storing")
    await ask(house, key, response("1", "swordfish"), input="the password?")
    await ask(house, key, response("2"), previous_response_id="resp_1")
    await below(house, key, "resp_1")
    await house.line(count=3)
    assert "swordfish" not in house.log.getvalue()
    assert "password" not in house.log.getvalue()


# --- going on ---


async def test_a_conversation_is_put_before_the_next_request(house: House) -> None:
    key = await house.key("storing")
    asked = [{"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}]
    await ask(house, key, response("1", "First"), input=asked, instructions="Be brief.")
    await ask(house, key, response("2", "Second"), input="Three?", previous_response_id="resp_1", stream=True)
    answer = await ask(house, key, response("3"), input="Four?", previous_response_id="resp_2", store=False)
    assert answer.status == 200
    first, _, last = house.sidecar.received
    assert internal.PREVIOUS_RESPONSE not in first.headers
    assert last.headers[internal.PREVIOUS_RESPONSE] == "resp_2"
    # Instructions are of their own request, and log-probabilities of no prompt.
    assert last.body == {
        "model": MODEL,
        "max_output_tokens": 8,
        "input": [
            *asked,
            text("assistant", "output_text", "First", annotations=[]),
            text("user", "input_text", "Three?"),
            text("assistant", "output_text", "Second", annotations=[]),
            text("user", "input_text", "Four?"),
        ],
    }
    rows = house.rows("stored_response")
    assert [(row["id"], row["previous_id"]) for row in rows] == [("resp_1", None), ("resp_2", "resp_1")]
    assert json.loads(rows[1]["input"]) == [text("user", "input_text", "Three?")]


async def test_what_is_reserved_has_room_for_the_conversation(house: House) -> None:
    key = await house.key("storing")
    await ask(house, key, response("1", "x" * 600))
    await ask(house, key, response("2"), previous_response_id="resp_1")
    alone, after = (int(one.headers[internal.MAX_TOTAL_TOKENS]) for one in house.sidecar.received)
    assert after > alone + 600


@pytest.mark.parametrize("name", ["resp_2", "resp_" + "x" * 36, "", "1", "resp_1\x00", "resp_1' OR 1=1"])
async def test_an_unknown_response_cannot_be_gone_on_from(house: House, name: str) -> None:
    key = await house.key("storing")
    await ask(house, key, response("1"))
    answer = await ask(house, key, response("2"), previous_response_id=name)
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
    assert answer.error["param"] == "previous_response_id"
    assert len(house.sidecar.received) == len(house.rows()) == 1


@pytest.mark.parametrize(
    ("fields", "param"), [({"previous_response_id": 1}, "previous_response_id"), ({"store": "true"}, "store")]
)
@pytest.mark.parametrize("tier", ["open", "storing"])
async def test_a_wrong_type_is_refused(house: House, tier: str, fields: dict[str, Any], param: str) -> None:
    answer = await ask(house, await house.key(tier), response("1"), **fields)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_type", param)


@pytest.mark.parametrize("given", [None, 5, [], {}])
async def test_a_conversation_makes_no_input_of_none(house: House, given: Any) -> None:
    """The sidecar refuses them, as it does without a conversation."""
    key = await house.key("storing")
    await ask(house, key, response("1"))
    await ask(house, key, response("2"), previous_response_id="resp_1", input=given, store=False)
    assert house.sidecar.received[-1].body["input"] == given


async def test_a_conversation_that_is_too_long_for_a_request_is_refused(build: Build) -> None:
    async with build(limits=Limits(max_body_bytes=2000)) as house:
        key = await house.key("storing")
        assert (await ask(house, key, response("1", "x" * 400))).status == 200
        assert (await ask(house, key, response("2", "x" * 400), previous_response_id="resp_1")).status == 200
        answer = await ask(house, key, response("3"), previous_response_id="resp_2", input="y" * 1500)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert answer.error["param"] == "previous_response_id"
        assert len(house.sidecar.received) == 2


@pytest.mark.parametrize(
    ("refused", "told"),
    [("input[2].content", "input[0].content"), ("input[13]", "input[11]"), ("input[1].type", "previous_response_id")],
)
async def test_an_item_is_refused_by_its_place_in_the_client_s_input(house: House, refused: str, told: str) -> None:
    key = await house.key("storing")
    await ask(house, key, response("1"))
    error = {"message": f"Wrong: '{refused}'.", "type": "invalid_request_error", "param": refused, "code": "c"}
    house.sidecar.refusal = (400, error, {})
    answer = await ask(house, key, response("2"), previous_response_id="resp_1")
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, told, "c")
    assert f"'{told}'" in answer.error["message"]
    alone = await ask(house, key, response("2"))
    assert alone.error == error


async def test_a_key_at_its_limits_reads_no_conversation(build: Build) -> None:
    async with build() as house:
        key = await house.key("one")
        # What the tier stores does not matter here: the limit comes first.
        assert (await ask(house, key, response("1"))).status == 200
        answer = await ask(house, key, response("2"), previous_response_id="resp_1")
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")


# --- by its id ---


async def test_a_response_is_shown_and_deleted(house: House) -> None:
    key, told = await house.key("storing"), response("1")
    await ask(house, key, told)
    shown = await below(house, key, "resp_1")
    assert (shown.status, json.loads(shown.body)) == (200, told)
    assert shown.headers["content-type"].startswith("application/json")
    assert (await below(house, key, "resp_1", "HEAD")).status == 200
    deleted = await below(house, key, "resp_1", "DELETE")
    assert json.loads(deleted.body) == {"id": "resp_1", "object": "response", "deleted": True}
    for method in ("GET", "DELETE"):
        gone = await below(house, key, "resp_1", method)
        assert (gone.status, gone.error["code"]) == (404, "response_not_found")
    line = await house.line(count=6)
    assert (line["endpoint"], line["error_code"]) == (f"{URL}/{{id}}", "response_not_found")


async def test_what_a_response_was_asked_is_listed(house: House) -> None:
    key = await house.key("storing")
    asked = [{"role": "user", "content": name} for name in "abc"]
    await ask(house, key, response("1"))
    await ask(house, key, response("2"), previous_response_id="resp_1", input=asked)
    page = json.loads((await below(house, key, "resp_2/input_items?limit=2")).body)
    assert [item["content"][0]["text"] for item in page["data"]] == ["c", "b"]
    assert (page["object"], page["has_more"]) == ("list", True)
    rest = json.loads((await below(house, key, f"resp_2/input_items?limit=2&after={page['last_id']}")).body)
    assert [item["content"][0]["text"] for item in rest["data"]] == ["a"]
    wrong = await below(house, key, "resp_2/input_items?order=up")
    assert (wrong.status, wrong.error["param"]) == (400, "order")
    assert (await below(house, await house.key("storing"), "resp_2/input_items")).status == 404
    deleting = await below(house, key, "resp_2/input_items", "DELETE")
    assert (deleting.status, deleting.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_another_account_s_response_is_an_unknown_one(house: House) -> None:
    mine, other = await house.key("storing"), await house.key("storing")
    await ask(house, mine, response("1"))
    unknown = await below(house, other, "resp_2")
    for method in ("GET", "DELETE"):
        answer = await below(house, other, "resp_1", method)
        assert (answer.status, answer.body) == (404, unknown.body.replace(b"resp_2", b"resp_1"))
    answer = await ask(house, other, response("2"), previous_response_id="resp_1")
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
    assert (await below(house, mine, "resp_1")).status == 200


async def test_a_stored_response_is_for_keys_alone(house: House) -> None:
    assert (await below(house, "sk-wrong", "resp_1")).status == 401


@pytest.mark.parametrize(
    ("path", "status"), [("resp_1?stream=true", 400), ("resp_1?stream=false", 200), ("resp_1?a=b", 200)]
)
async def test_a_stored_response_is_not_streamed(house: House, path: str, status: int) -> None:
    key = await house.key("storing")
    await ask(house, key, response("1"))
    assert (await below(house, key, path)).status == status


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("resp_1", "POST", "method_not_supported"),
        ("input_tokens", "GET", "unknown_url"),
        ("resp_1/cancel", "GET", "unknown_url"),
        ("", "GET", "unknown_url"),
    ],
)
async def test_there_is_nothing_else_below(house: House, path: str, method: str, code: str) -> None:
    answer = await below(house, await house.key("storing"), path, method)
    assert answer.error["code"] == code


async def test_an_account_loses_its_oldest_response_when_it_has_too_many(build: Build) -> None:
    async with build(limits=Limits(max_stored_bytes=2000)) as house:
        key = await house.key("storing")
        for number in range(3):
            assert (await ask(house, key, response(str(number), "x" * 200))).status == 200
        assert [row["id"] for row in house.rows("stored_response")] == ["resp_1", "resp_2"]
