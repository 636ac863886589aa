"""The headers that answers really have are those of docs/api.md, and what that tells of requests is read."""

import re
from pathlib import Path
from typing import Final

from proxy.policy import response_headers
from tests.fakes.sidecar import MODEL
from tests.wire.proxy.house import House, chat, request

PAGE: Final = (Path(__file__).parents[3] / "docs/api.md").read_text()


def documented(kind: str) -> set[str]:
    """The names in the table whose head says so."""
    table = PAGE.partition(f"| header of {kind} | what |\n")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}


async def test_each_header_of_an_answer_is_documented(house: House) -> None:
    key, few, keeping = await house.key("upto"), await house.key("one"), await house.key("keeping")
    message = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    again = request(keeping, chat(stream=False), headers={"idempotency-key": "x"})
    sent = [
        request(key, chat(), headers={"x-client-request-id": "mine"}),
        request(key, chat(stream=False)),
        request(key, message, path="/v1/messages"),
        request(few, chat(stream=False)),
        request(few, chat(stream=False)),
        request(None, chat()),
        request(key, chat(max_tokens=10**6)),
        request(key, method="DELETE", path="/v1/models"),
        request(key, path="/nowhere"),
        again,
        again,
    ]
    found: set[str] = set()
    statuses: list[int] = []
    for raw in sent:
        wire = await house.connect()
        await wire.send(raw)
        answer = await wire.answer()
        statuses.append(answer.status)
        found |= answer.headers.keys()
    # The fake sidecar does not speak Anthropic's words: a 503.
    assert sorted(set(statuses)) == [200, 400, 401, 404, 405, 429, 503]
    # A tier with soft quotas, and an upstream that ignores fields, have these two, too.
    assert found <= documented("an answer")
    assert documented("an answer") - found <= {
        "x-tollhouse-quota-warning",
        "x-tollhouse-ignored",
        "transfer-encoding",
        "cache-control",
        "x-accel-buffering",
        "connection",
    }


def test_each_name_that_a_policy_may_not_take_is_documented() -> None:
    told = documented("an answer") | documented("a request")
    assert response_headers.OURS - told == set()
