"""The request log over the admin API: what a client asked for, found again in numbers."""

import json
from urllib.parse import urlencode

import pytest

from tests.wire.proxy.conftest import on_both
from tests.wire.proxy.house import Answer, House, chat, request

pytestmark = on_both


async def log(house: House, **query: object) -> Answer:
    wire = await house.connect_unix()
    await wire.send(request(None, method="GET", path=f"/admin/v1/log?{urlencode(query)}"))
    return await wire.answer()


async def test_a_request_is_in_the_log_and_what_was_said_is_not(house: House) -> None:
    key = await house.key()
    for stream in (True, False):
        body = chat(stream=stream, messages=[{"role": "user", "content": "the canary"}])
        assert (await (await house.ask(key, body)).answer()).status == 200
    first = json.loads((await log(house, limit=1)).body)
    ((newest,), following) = first["data"], first["next"]
    assert (newest["stream"], newest["state"], newest["status"], newest["reason"]) == (
        False,
        "settled",
        200,
        "complete",
    )
    second = json.loads((await log(house, after=following, status=200, model="org/tiny")).body)
    assert [(row["stream"], row["prompt_tokens"]) for row in second["data"]] == [(True, 7)]
    assert second["next"] is None
    assert "canary" not in json.dumps([first, second])
    assert json.loads((await log(house, status=404)).body)["data"] == []


@pytest.mark.parametrize(
    "query",
    [
        {"after": "nowhere"},
        {"since": "2026-11-01T00:00:00"},
        {"since": "yesterday"},
        {"status": "99"},
        {"state": "open"},
        {"limit": "1001"},
        {"offset": "1"},
    ],
)
async def test_a_search_that_cannot_be_is_a_400(house: House, query: dict[str, str]) -> None:
    assert (await log(house, **query)).status == 400
