"""Tokens of texts and back through the proxy: who may ask, what it counts for, and that nothing is owed."""

import json
from typing import Any

import pytest

from tests.fakes.sidecar import MODEL, FakeSidecar, model_state
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, chat, request

PATHS = ("/tokenize", "/detokenize")
BODY: dict[str, Any] = {"model": MODEL, "prompt": "Hi"}
ANSWER = b'{"count":1,"max_model_len":2048,"tokens":[5],"token_strs":null}'


async def ask(house: House, key: str | None, body: Any = BODY, path: str = "/tokenize", method: str = "POST") -> Answer:
    wire = await house.connect()
    await wire.send(request(key, body, method=method, path=path))
    return await wire.answer()


@pytest.mark.parametrize("path", PATHS)
async def test_the_sidecar_s_answer_is_the_client_s(house: House, path: str) -> None:
    house.sidecar.whole, house.sidecar.ignored = ANSWER, "extra"
    answer = await ask(house, await house.key(), path=path)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, ANSWER, "application/json")
    assert answer.headers["x-tollhouse-ignored"] == "extra"
    (received,) = house.sidecar.received
    assert (received.path, received.body) == (path, BODY)
    assert received.headers["x-tollhouse-request-id"] == answer.headers["x-request-id"]
    line = await house.line()
    assert (line["endpoint"], line["model"], line["status"], line["ending"]) == (path, MODEL, 200, "complete")
    assert house.rows() == []


async def test_it_counts_for_the_minute_as_a_chat_does(house: House) -> None:
    key = await house.key("one")
    answer = await ask(house, key)
    assert (answer.headers["x-ratelimit-limit-requests"], answer.headers["x-ratelimit-remaining-requests"]) == (
        "1",
        "0",
    )
    for refused in (await ask(house, key, path="/detokenize"), await (await house.ask(key, chat())).answer()):
        assert (refused.status, refused.error["type"]) == (429, "requests")
        assert int(refused.headers["retry-after"]) > 0
    # Of what a tokenizer is asked there is nothing.
    await house.until(house.rows)
    assert [(row["state"], row["endpoint"]) for row in house.rows()] == [("refused", "/v1/chat/completions")]


async def test_what_the_sidecar_refuses_is_passed_on_and_costs_nothing(house: House) -> None:
    key = await house.key("one")
    error = {"message": "no", "type": "invalid_request_error", "param": "tokens", "code": "invalid_value"}
    house.sidecar.refusal = (400, error, {})
    for _ in range(2):
        answer = await ask(house, key, path="/detokenize")
        assert (answer.status, answer.error) == (400, error)
    house.sidecar.refusal = None
    assert (await ask(house, key)).status == 200


async def test_only_a_model_that_the_key_may_use_is_asked(build: Build) -> None:
    def two(sidecar: FakeSidecar) -> None:
        sidecar.models = [model_state("org/other"), model_state()]

    async with build(prepare=two) as house:
        of_tier, of_key, wide = await house.key("other"), await house.key(models=[MODEL]), await house.key()
        for key, name in ((of_tier, MODEL), (of_key, "org/other"), (wide, "gpt-9")):
            answer = await ask(house, key, BODY | {"model": name})
            assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert house.sidecar.received == []
        # Without a name it is the only one that there is for this key.
        for key, name in ((of_tier, "org/other"), (of_key, MODEL)):
            assert (await ask(house, key, {"prompt": "Hi"})).status == 200
            assert house.sidecar.received[-1].body["model"] == name
        unnamed = await ask(house, wide, {"prompt": "Hi"})
        assert (unnamed.status, unnamed.error["param"]) == (400, "model")


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_and_with_another_method_nothing_is_asked(house: House, path: str) -> None:
    assert (await ask(house, None, path=path)).status == 401
    wrong = await ask(house, await house.key(), b"", path, "GET")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert (await ask(house, await house.key(), path=f"/v1{path}")).status == 404
    assert house.sidecar.received == []


async def test_while_the_model_loads_it_is_a_503(build: Build) -> None:
    def loading(sidecar: FakeSidecar) -> None:
        sidecar.ready, sidecar.reason, sidecar.models = False, "loading", []

    async with build(prepare=loading) as house:
        for body in (BODY, {"prompt": "Hi"}):
            answer = await ask(house, await house.key(), body)
            assert (answer.status, answer.error["code"]) == (503, "model_loading")
            assert json.loads(answer.body)["error"]["type"] == "service_unavailable_error"
