"""Messages in Anthropic's shape through the proxy: keys, charges, and errors as that API has them."""

import asyncio
import json
from typing import Any

import pytest

from sidecar.wire.anthropic import MESSAGE_STOP
from tests.fakes.sidecar import ABORT, MODEL, Step, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, request

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
BODY: dict[str, Any] = {**CHAT, "max_tokens": 8}
STREAM: dict[str, Any] = {**BODY, "stream": True}
WHOLE = (
    b'{"type":"message","content":[{"type":"text","text":"Hi"}],"stop_reason":"max_tokens",'
    b'"usage":{"input_tokens":5,"output_tokens":3,"cache_read_input_tokens":2,"cache_creation_input_tokens":0}}'
)
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'
END = b'event: message_delta\ndata: {"type":"message_delta"}\n\n' + MESSAGE_STOP
SCRIPT: list[Step] = [DELTA, usage_comment(3), END]


async def ask(
    house: House, key: str | None, body: Any = BODY, path: str = MESSAGES, method: str = "POST", **headers: str
) -> Answer:
    wire = await house.connect()
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    await wire.send(request(key, body, method=method, path=path, headers=told))
    return await wire.answer()


def told(answer: Answer) -> tuple[int, str]:
    """The status and type of an error, once it is seen to have Anthropic's shape."""
    document = json.loads(answer.body)
    assert set(document) == {"type", "error", "request_id"}
    assert set(document["error"]) == {"type", "message"}
    assert (document["type"], document["request_id"]) == ("error", answer.headers["x-request-id"])
    return answer.status, document["error"]["type"]


async def broken_off(house: House, *steps: Step) -> tuple[dict[str, str], bytes]:
    """The head of a stream that goes on with these steps once its first event is here, and what follows that."""
    seen = asyncio.Event()
    house.sidecar.script, house.sidecar.always_produced = [DELTA, seen, *steps], 1
    wire = await house.connect()
    await wire.send(request(await house.key(), STREAM, path=MESSAGES))
    status, head = await wire.head()
    assert (status, await wire.chunk()) == (200, DELTA)
    seen.set()
    events = b""
    while chunk := await wire.chunk():
        events += chunk
    assert chunk is None
    return head, events


async def test_a_message_is_passed_on_and_charged_as_a_chat_is(house: House) -> None:
    house.sidecar.whole = WHOLE
    answer = await ask(house, await house.key(), anthropic_version="2023-06-01")
    assert (answer.status, answer.body) == (200, WHOLE)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    (received,) = house.sidecar.received
    assert (received.path, received.body) == (MESSAGES, BODY)
    line = await house.line()
    assert (line["endpoint"], line["ending"], line["finish_reason"]) == (MESSAGES, "complete", "length")
    (row,) = house.rows()
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == (MESSAGES, 7, 3)


async def test_a_stream_ends_after_it_is_settled(house: House) -> None:
    house.sidecar.script = SCRIPT
    answer = await ask(house, await house.key(), STREAM)
    assert (answer.status, answer.body, answer.whole) == (200, DELTA + END, True)
    (row,) = house.rows()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 3)


async def test_the_key_may_come_in_either_header_but_there_is_one(house: House) -> None:
    house.sidecar.whole = WHOLE
    key, other = await house.key(), await house.key()
    for path, body in ((MESSAGES, BODY), (COUNT, CHAT)):
        assert (await ask(house, None, body, path, x_api_key=key)).status == 200
        assert (await ask(house, key, body, path)).status == 200
        assert (await ask(house, key, body, path, x_api_key=key)).status == 200
        assert told(await ask(house, key, body, path, x_api_key=other)) == (401, "authentication_error")
        assert told(await ask(house, None, body, path, x_api_key="sk-wrong")) == (401, "authentication_error")
        assert told(await ask(house, None, body, path)) == (401, "authentication_error")
    assert (await ask(house, None, BODY, "/v1/chat/completions", x_api_key=key)).status == 401
    assert key not in house.log.getvalue()


async def test_a_limit_is_told_in_anthropic_s_words(house: House) -> None:
    house.sidecar.whole = WHOLE
    key = await house.key("one")
    assert (await ask(house, key)).status == 200
    for path, body in ((MESSAGES, BODY), (COUNT, CHAT)):
        refused = await ask(house, key, body, path)
        assert told(refused) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize(("path", "body"), [(MESSAGES, BODY), (COUNT, CHAT)])
async def test_a_refusal_of_the_proxy_s_or_the_sidecar_s_has_one_shape(house: House, path: str, body: Any) -> None:
    key = await house.key()
    assert told(await ask(house, key, {**body, "model": "nobody"}, path)) == (404, "not_found_error")
    assert told(await ask(house, key, b"[]", path)) == (400, "invalid_request_error")
    assert told(await ask(house, key, {"messages": []}, path)) == (400, "invalid_request_error")
    assert told(await ask(house, key, b"", path, "GET")) == (405, "invalid_request_error")
    assert house.sidecar.received == []
    error = {"message": "no", "type": "invalid_request_error", "param": "tools", "code": "unsupported_parameter"}
    house.sidecar.refusal = (400, error, {})
    refused = await ask(house, key, body, path)
    assert told(refused) == (400, "invalid_request_error")
    assert refused.error["message"] == "tools: no"
    assert (await house.line(count=5))["error_code"] == "unsupported_parameter"
    # Of what is only counted nothing is set aside; of what was refused nothing is owed.
    assert (await house.row("void"))["completion_tokens"] == 0 if path == MESSAGES else house.rows() == []


async def test_a_stream_that_breaks_off_ends_with_an_error_event(house: House) -> None:
    head, events = await broken_off(house, ABORT)
    name, _, document = events.partition(b"\ndata: ")
    assert name == b"event: error"
    told = json.loads(document)
    assert (told["error"]["type"], told["request_id"]) == ("overloaded_error", head["x-request-id"])


async def test_the_sidecar_s_own_error_event_is_the_only_one(house: House) -> None:
    event = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"no"},"request_id":"r"}\n\n'
    assert (await broken_off(house, event, ABORT))[1] == event


async def test_a_key_that_is_revoked_meanwhile_is_told_in_the_stream(house: House) -> None:
    never = asyncio.Event()
    house.sidecar.script, house.sidecar.always_produced = [DELTA, never], 1
    key = await house.key()
    wire = await house.connect()
    await wire.send(request(key, STREAM, path=MESSAGES))
    await wire.head()
    assert await wire.chunk() == DELTA
    await house.revoke(key)
    event = await wire.chunk()
    assert event is not None
    assert event.startswith(b"event: error\n")
    assert b'"authentication_error"' in event


async def test_a_count_is_the_sidecar_s_and_costs_a_request_of_the_minute(house: House) -> None:
    house.sidecar.whole = b'{"input_tokens":7}'
    answer = await ask(house, await house.key("one"), CHAT, COUNT)
    assert (answer.status, answer.body) == (200, b'{"input_tokens":7}')
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert house.rows() == []


async def test_what_bytes_do_not_bound_is_counted_as_a_message(build: Build) -> None:
    async with build() as house:
        house.sidecar.whole = WHOLE
        key = await house.key()
        assert (await ask(house, key, {**BODY, "system": "S"})).status == 200
        assert house.sidecar.counted == []
        prefill = [*CHAT["messages"], {"role": "assistant", "content": "It"}]
        assert (await ask(house, key, {**BODY, "messages": prefill})).status == 200
        assert house.sidecar.counted == [MESSAGES]
