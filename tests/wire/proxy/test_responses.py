"""/v1/responses through the proxy: its events and its end, its books, and what breaks off on the way."""

import asyncio
import json
from typing import Any

import pytest

from sidecar.wire import internal
from sidecar.wire.internal import Endpoint
from tests.fakes.sidecar import ABORT, MODEL, usage_comment
from tests.wire.proxy.house import Answer, House, Wire, request

URL = Endpoint.RESPONSES.value
WHOLE = (
    b'{"object":"response","status":"incomplete","output":[],"usage":{"input_tokens":7,'
    b'"input_tokens_details":{"cached_tokens":2},"output_tokens":3,"total_tokens":10}}'
)


def event(name: str) -> bytes:
    return f'event: response.{name}\ndata: {{"type":"response.{name}"}}\n\n'.encode()


async def begin(house: House, key: str, **fields: Any) -> Wire:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 8, "stream": True} | fields
    wire = await house.connect()
    await wire.send(request(key, body, path=URL))
    return wire


async def ask(house: House, key: str, **fields: Any) -> Answer:
    return await (await begin(house, key, **fields)).answer()


@pytest.mark.parametrize("last", ["completed", "incomplete"])
async def test_a_stream_is_relayed_to_its_own_end_and_settled(house: House, last: str) -> None:
    before, after = event("created") + event("output_text.delta"), event("output_text.done") + event(last)
    house.sidecar.script = [before, usage_comment(3), after]
    answer = await ask(house, await house.key())
    assert (answer.status, answer.whole, answer.body) == (200, True, before + after)
    # A complete answer implies a settled row: no waiting here.
    (row,) = house.rows()
    assert (row["state"], row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", URL, 7, 3)
    assert house.sidecar.received[0].path == URL


async def test_a_whole_answer_is_relayed_and_settled_by_its_own_usage(house: House) -> None:
    house.sidecar.whole = WHOLE
    answer = await ask(house, await house.key(), stream=False)
    assert (answer.status, answer.body) == (200, WHOLE)
    (row,) = house.rows()
    assert (row["state"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", 7, 3)
    line = await house.line()
    assert (line["endpoint"], line["finish_reason"], line["cached_tokens"]) == (URL, "length", 2)


async def test_a_failed_response_is_told_once_and_what_was_produced_is_owed(house: House) -> None:
    house.sidecar.always_produced = 2
    seen = asyncio.Event()
    house.sidecar.script = [event("created"), seen, event("failed"), ABORT]
    wire = await begin(house, await house.key())
    await wire.head()
    assert await wire.chunk() == event("created")
    seen.set()
    assert await wire.chunk() == event("failed")
    assert await wire.chunk() is None
    row = await house.row("settled")
    assert (row["completion_tokens"], row["reason"]) == (2, "upstream_failed")


async def test_a_sidecar_that_dies_is_an_error_event_and_no_proper_end(house: House) -> None:
    house.sidecar.always_produced = 1
    seen = asyncio.Event()
    house.sidecar.script = [event("created"), seen, ABORT]
    wire = await begin(house, await house.key())
    await wire.head()
    assert await wire.chunk() == event("created")
    seen.set()
    told = await wire.chunk()
    assert told is not None
    assert json.loads(told.removeprefix(b"data: "))["error"]["code"] == "upstream_unavailable"
    assert await wire.chunk() is None


async def test_an_end_without_its_last_event_is_no_whole_answer(house: House) -> None:
    house.sidecar.always_produced = 3
    house.sidecar.script = [event("created"), usage_comment(3), event("output_text.done")]
    answer = await ask(house, await house.key())
    assert not answer.whole
    assert (await house.row("settled"))["reason"] == "upstream_failed"


async def test_a_template_s_effort_is_counted_for_this_endpoint(house: House) -> None:
    house.sidecar.script = [event("created"), usage_comment(3), event("completed")]
    assert (await ask(house, await house.key(), reasoning={"effort": "low"})).whole
    assert house.sidecar.counted == [URL]
    assert int(house.sidecar.received[0].headers[internal.MAX_TOTAL_TOKENS]) == 7 + 8


async def test_a_limit_of_output_is_refused_by_its_field(house: House) -> None:
    answer = await ask(house, await house.key(), max_output_tokens="8")
    assert (answer.status, answer.error["param"]) == (400, "max_output_tokens")
    assert house.rows() == []
