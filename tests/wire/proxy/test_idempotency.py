"""Idempotency-Key in bytes: what runs once, what is given again, and what the books say of it."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import openai
import pytest

from proxy.signing import Signer
from tests.fakes.sidecar import ABORT, MODEL, STREAM, WHOLE, delta
from tests.wire.proxy.house import Answer, House, Wire, chat, request

KEY = "order-7"
FULL: Any = (503, {"error": {"message": "full", "type": "x", "code": "server_is_overloaded"}}, {"retry-after-ms": "1"})


async def ask(house: House, key: str, word: str = KEY, **fields: Any) -> Wire:
    return await house.ask(key, chat(**{"stream": False, **fields}), headers={"idempotency-key": word})


async def answered(house: House, key: str, word: str = KEY, **fields: Any) -> Answer:
    return await (await ask(house, key, word, **fields)).answer()


async def test_a_kept_answer_is_given_again_without_a_charge(house: House) -> None:
    key = await house.key("keeping")
    first = await answered(house, key)
    assert (first.status, first.body, first.headers.get("idempotent-replayed")) == (200, WHOLE, None)
    again = await answered(house, key)
    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (200, WHOLE, "true")
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(house.sidecar.received) == 1
    assert [row["state"] for row in house.rows()] == ["settled"]
    line = await house.line(count=2)
    assert (line["status"], line["ending"], line.get("completion_tokens")) == (200, "complete", None)


async def test_without_leave_to_keep_answers_a_repetition_is_told_that_it_is_done(house: House) -> None:
    key = await house.key()
    assert (await answered(house, key)).status == 200
    again = await answered(house, key)
    assert (again.status, again.error["code"]) == (409, "idempotency_done")
    assert again.headers["x-should-retry"] == "false"
    assert [row["answer"] for row in house.rows("idempotency", by="id")] == [None]
    assert len(house.sidecar.received) == 1


async def test_a_stream_is_told_that_it_is_done(house: House) -> None:
    key = await house.key("keeping")
    assert (await answered(house, key, stream=True)).whole
    again = await answered(house, key, stream=True)
    assert (again.status, again.error["code"]) == (409, "idempotency_stream_done")
    assert again.headers["x-should-retry"] == "false"
    assert [row["answer"] for row in house.rows("idempotency", by="id")] == [None]


async def test_another_payload_is_a_422(house: House) -> None:
    key = await house.key("keeping")
    await answered(house, key)
    other = await answered(house, key, max_tokens=9)
    assert (other.status, other.error["code"]) == (422, "idempotency_mismatch")


async def test_a_running_one_is_a_409_with_retry_after(house: House) -> None:
    key, go = await house.key("keeping"), asyncio.Event()
    house.sidecar.script = [go]
    running = await ask(house, key)
    await house.until(lambda: house.sidecar.received)
    again = await answered(house, key)
    assert (again.status, again.error["code"], again.headers["retry-after"]) == (409, "idempotency_in_progress", "1")
    go.set()
    assert (await running.answer()).status == 200
    assert (await answered(house, key)).headers["idempotent-replayed"] == "true"


async def test_of_many_at_once_one_runs(house: House) -> None:
    key, go = await house.key("keeping"), asyncio.Event()
    house.sidecar.script = [go]
    wires = [await ask(house, key) for _ in range(8)]
    await house.until(lambda: len(house.lines("request")) == 7)
    go.set()
    statuses = sorted([(await wire.answer()).status for wire in wires])
    assert statuses == [200, *([409] * 7)]
    assert len(house.sidecar.received) == 1
    assert [row["state"] for row in house.rows()] == ["settled"]


async def test_what_was_refused_is_not_stored(house: House) -> None:
    key = await house.key("keeping")
    assert (await answered(house, key, model="nobody")).status == 404
    assert house.rows("idempotency", by="id") == []
    house.sidecar.refusal = FULL
    assert (await answered(house, key)).status == 503
    await house.until(lambda: [row["state"] for row in house.rows()] == ["void"])
    house.sidecar.refusal = None
    first = await answered(house, key)
    assert (first.status, first.headers.get("idempotent-replayed")) == (200, None)


async def test_what_broke_off_may_be_tried_again_and_is_charged_for_what_it_used(house: House) -> None:
    key = await house.key("keeping")
    house.sidecar.always_produced = 1
    house.sidecar.script = [delta("a"), ABORT]
    broken = await answered(house, key, stream=True)
    # What came before the break has left, or has not.
    assert broken.status == 503 or not broken.whole
    await house.until(lambda: [row["state"] for row in house.rows()] == ["settled"])
    house.sidecar.script, house.sidecar.always_produced = STREAM, None
    assert (await answered(house, key, stream=True)).whole
    assert len(house.sidecar.received) == 2


async def test_each_api_key_and_path_has_its_own_words(house: House) -> None:
    key = await house.key("keeping")
    await answered(house, key)
    other = await answered(house, await house.key("keeping"))
    assert (other.status, other.headers.get("idempotent-replayed")) == (200, None)
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 8}
    wire = await house.ask(key, body, path="/v1/completions", headers={"idempotency-key": KEY})
    assert (await wire.answer()).headers.get("idempotent-replayed") is None


async def test_a_bad_key_is_a_400_and_nothing_runs(house: House) -> None:
    error = (await answered(house, await house.key(), "x" * 256)).error
    assert (error["code"], error["param"]) == ("invalid_value", "idempotency-key")
    assert house.sidecar.received == []


async def test_a_restart_forgets_no_answer(build: Any) -> None:
    async with build() as house:
        key = await house.key("keeping")
        await answered(house, key)
    async with build() as house:
        assert (await answered(house, key)).headers["idempotent-replayed"] == "true"
        assert house.sidecar.received == []


async def test_f1_a_key_of_a_killed_proxy_is_free_when_nothing_ran(build: Any, tmp_path: Path) -> None:
    async with build() as house:
        key = await house.key("keeping")
        await answered(house, key)
    with sqlite3.connect(tmp_path / "data/t.db") as database:
        # As if the proxy had died between the reservation and the model.
        database.execute("UPDATE ledger SET state = 'reserved', boot_id = 'boot_dead', ended = NULL, reason = NULL")
        database.execute("UPDATE ledger SET prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, status = NULL")
        database.execute("UPDATE idempotency SET answer = NULL")
        database.execute(
            "UPDATE quota SET reserved_tokens = (SELECT est_tokens FROM ledger), reserved_requests = 1, "
            "settled_tokens = 0, settled_requests = 0, settled_prompt_tokens = 0, settled_cached_tokens = 0"
        )
    database.close()
    async with build() as house:
        first = await answered(house, key)
        assert (first.status, first.headers.get("idempotent-replayed")) == (200, None)
        assert sorted(row["state"] for row in house.rows()) == ["settled", "void"]


async def test_a_signed_request_is_given_its_answer_again_once(house: House) -> None:
    secret = await house.key("keeping", signed=True)
    host = {"host": f"127.0.0.1:{house.ready['port']}"}
    url = f"http://{host['host']}/v1/chat/completions"

    def signed() -> bytes:
        body = json.dumps(chat(stream=False)).encode()
        told = Signer(secret).headers("POST", url, body, {"idempotency-key": KEY})
        return request(None, body, headers={**host, "idempotency-key": KEY, **told})

    async def sent(raw: bytes) -> Answer:
        wire = await house.connect()
        await wire.send(raw)
        return await wire.answer()

    assert (await sent(signed())).status == 200
    again = signed()
    assert (await sent(again)).headers["idempotent-replayed"] == "true"
    assert (await sent(again)).error["code"] == "nonce_replayed"
    # The key is covered: nobody takes it off or puts another in its place.
    other = signed().replace(KEY.encode(), b"order-8")
    assert (await sent(other)).error["code"] == "invalid_signature"


async def test_the_stock_sdk_retries_with_one_key(house: House) -> None:
    key = await house.key("keeping")
    base_url = f"http://127.0.0.1:{house.ready['port']}/v1"
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    async with openai.AsyncOpenAI(api_key=key, base_url=base_url) as client:
        house.sidecar.refusal = FULL
        first = asyncio.ensure_future(client.chat.completions.create(**asked, extra_headers={"Idempotency-Key": KEY}))
        await house.until(lambda: house.lines("request"))
        house.sidecar.refusal = None
        answer = await first
        again = await client.chat.completions.with_raw_response.create(**asked, extra_headers={"Idempotency-Key": KEY})
        assert again.headers["idempotent-replayed"] == "true"
        assert again.parse().id == answer.id
        with pytest.raises(openai.UnprocessableEntityError):
            await client.chat.completions.create(**asked, n=2, extra_headers={"Idempotency-Key": KEY})
