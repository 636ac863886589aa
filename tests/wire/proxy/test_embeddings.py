"""/v1/embeddings through the proxy: what is asked, answered, owed, and what breaks off on the way."""

import asyncio
from typing import Any

from sidecar.wire import internal
from sidecar.wire.internal import Endpoint
from tests.fakes.sidecar import MODEL
from tests.wire.proxy.house import Answer, House, Wire, request

URL = Endpoint.EMBEDDINGS.value
WHOLE = (
    b'{"data":[{"index":0,"embedding":[1.0],"object":"embedding"}],"model":"org/tiny",'
    b'"usage":{"prompt_tokens":7,"total_tokens":7},"object":"list"}'
)


async def begin(house: House, key: str, **fields: Any) -> Wire:
    house.sidecar.whole = WHOLE
    wire = await house.connect()
    await wire.send(request(key, {"model": MODEL, "input": ["a", "b"]} | fields, path=URL))
    return wire


async def ask(house: House, key: str, **fields: Any) -> Answer:
    return await (await begin(house, key, **fields)).answer()


async def test_vectors_are_passed_on_and_their_inputs_are_owed(house: House) -> None:
    answer = await ask(house, await house.key(), encoding_format="base64")
    assert (answer.status, answer.body) == (200, WHOLE)
    (row,) = house.rows()
    assert (row["state"], row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", URL, 7, 0)
    (asked,) = house.sidecar.received
    assert asked.path == URL
    assert asked.body == {"model": MODEL, "input": ["a", "b"], "encoding_format": "base64"}
    # Nothing is produced, so no choice has a share of the reservation.
    assert internal.MAX_OUTPUT_TOKENS not in asked.headers
    assert int(asked.headers[internal.MAX_TOTAL_TOKENS]) >= 7


async def test_a_refusal_is_passed_on_and_nothing_is_owed(house: House) -> None:
    error = {"message": "no", "type": "invalid_request_error", "param": "stream", "code": "unknown_parameter"}
    house.sidecar.refusal = (400, error, {})
    answer = await ask(house, await house.key(), stream=True)
    assert (answer.status, answer.error) == (400, error)
    row = await house.row("void")
    assert (row["reason"], row["status"], row["prompt_tokens"]) == ("upstream_refused", 400, 0)


async def test_a_client_that_leaves_owes_what_was_read(house: House) -> None:
    wait = asyncio.Event()
    house.sidecar.script, house.sidecar.always_produced = [wait], 0
    wire = await begin(house, await house.key())
    await house.until(lambda: bool(house.sidecar.received))
    await wire.close()
    line = await house.line()
    assert (line["ending"], line["endpoint"]) == ("client_gone", URL)
    (row,) = house.rows()
    assert (row["state"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", 7, 0)
