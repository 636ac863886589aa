"""Requests that come twice, in bytes: with a nonce, and with none."""

import asyncio
import json
from typing import Any

from tests.wire.proxy.house import House, Wire, chat, request

NONCE = "0123456789abcdef"


async def ask(house: House, key: str, nonce: str | None = NONCE, **options: Any) -> Wire:
    headers = {} if nonce is None else {"x-request-nonce": nonce}
    return await house.ask(key, chat(stream=False), headers=headers, **options)


async def test_r_a_nonce_is_used_once_and_nothing_is_charged_again(house: House) -> None:
    key = await house.key("duplicate")
    assert (await (await ask(house, key)).answer()).status == 200
    answer = await (await ask(house, key)).answer()
    assert (answer.status, answer.error["code"]) == (409, "duplicate_request")
    assert answer.headers["x-should-retry"] == "false"
    assert len(house.sidecar.received) == 1
    assert [row["state"] for row in house.rows()] == ["settled"]
    line = await house.line(count=2)
    assert (line["status"], line["error_code"]) == (409, "duplicate_request")
    # Another key has nonces of its own.
    assert (await (await ask(house, await house.key("duplicate"))).answer()).status == 200


async def test_r_of_two_at_the_same_time_one_runs(house: House) -> None:
    key = await house.key("duplicate")
    go = asyncio.Event()
    house.sidecar.script = [go]
    wires = [await ask(house, key) for _ in range(2)]
    await house.until(lambda: house.sidecar.received and house.lines("request"))
    go.set()
    answers = [await wire.answer() for wire in wires]
    assert sorted(answer.status for answer in answers) == [200, 409]
    # That is a decision, and no failure of the database.
    assert house.lines("ledger_commit_failed") == []
    assert len(house.sidecar.received) == 1


async def test_r_a_missing_nonce_is_a_400_before_the_body_is_read(house: House) -> None:
    key = await house.key("duplicate")
    wire = await house.connect()
    # No byte of the body comes.
    await wire.send(request(key, chat())[: -len(json.dumps(chat()))])
    answer = await wire.answer()
    assert (answer.status, answer.error["param"]) == (400, "x-request-nonce")


async def test_r_what_was_refused_may_come_again_with_its_nonce(house: House) -> None:
    key = await house.key("duplicate")
    house.sidecar.refusal = (503, {"message": "full", "type": "x", "code": "server_is_overloaded"}, {})
    refused = await (await ask(house, key)).answer()
    assert refused.status == 503
    await house.until(lambda: house.rows() and house.rows()[0]["state"] == "void")
    wrong = await (await house.ask(key, chat(model="nobody"), headers={"x-request-nonce": NONCE})).answer()
    assert wrong.status == 404
    house.sidecar.refusal = None
    assert (await (await ask(house, key)).answer()).status == 200
    assert (await (await ask(house, key)).answer()).status == 409


async def test_r_pages_and_questions_have_their_nonces_too(house: House) -> None:
    key = await house.key("duplicate")
    shown: dict[str, Any] = {"method": "GET", "path": "/v1/models"}
    counted: dict[str, Any] = {"path": "/tokenize"}
    for number, options in enumerate((shown, counted)):
        headers = {"x-request-nonce": f"{NONCE}{number}"}
        body = b"" if options is shown else {"prompt": "Hi"}
        for status in (200, 409):
            wire = await house.ask(key, body, headers=headers, **options)
            assert (await wire.answer()).status == status
    assert (await (await house.ask(key, b"", **shown)).answer()).status == 400


async def test_r_a_restart_forgets_no_nonce(build: Any) -> None:
    async with build() as house:
        key = await house.key("duplicate")
        assert (await (await ask(house, key)).answer()).status == 200
    async with build() as house:
        assert (await (await ask(house, key)).answer()).status == 409
