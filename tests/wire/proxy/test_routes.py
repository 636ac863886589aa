"""The public table of URLs: what is there, for whom, and what is not."""

import json

import pytest

from tests.fakes.sidecar import MODEL, FakeSidecar, model_state
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, chat, request

CHAT = "/v1/chat/completions"


async def got(house: House, key: str | None, path: str, method: str = "GET") -> Answer:
    wire = await house.connect()
    await wire.send(request(key, method=method, path=path))
    return await wire.answer(bodiless=method == "HEAD")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/livez",
        "/admin/v1/keys",
        "/internal/state",
        "/v1",
        "/v1/models/",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/./chat/completions",
        "/V1/chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat/completions/../../../admin",
        "http://other/v1/models",
    ],
)
async def test_what_is_not_in_the_table_is_unknown_with_and_without_a_key(house: House, path: str) -> None:
    for key in (None, await house.key()):
        answer = await got(house, key, path)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST, OPTIONS"),
        ("DELETE", f"/v1/models/{MODEL}", "GET, HEAD, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("TRACE", CHAT, "POST, OPTIONS"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(house: House, method: str, path: str, allow: str) -> None:
    answer = await got(house, None, path, method)
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_supported", allow)


async def test_options_tells_the_methods_without_a_key(house: House) -> None:
    answer = await got(house, None, CHAT, "OPTIONS")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "POST, OPTIONS", b"")


async def test_a_query_changes_nothing(house: House) -> None:
    assert (await got(house, await house.key(), "/v1/models?api-version=1")).status == 200


async def test_models_lists_what_the_key_may_use(build: Build) -> None:
    def two(sidecar: FakeSidecar) -> None:
        sidecar.models = [model_state("org/other"), model_state()]

    async with build(prepare=two) as house:
        whole = await got(house, await house.key(), "/v1/models")
        found = json.loads(whole.body)
        assert (found["object"], [model["id"] for model in found["data"]]) == ("list", ["org/other", MODEL])
        assert found["data"][1] == {
            "id": MODEL,
            "created": 1_700_000_000,
            "max_model_len": 2048,
            "root": MODEL,
            "parent": None,
            "tollhouse": {"precision": "fp32", "tier": "packed", "capabilities": ["chat"]},
            "object": "model",
            "owned_by": "tollhouse",
        }
        of_tier = await got(house, await house.key("other"), "/v1/models")
        assert [model["id"] for model in json.loads(of_tier.body)["data"]] == ["org/other"]
        of_key = await got(house, await house.key(models=[MODEL]), "/v1/models")
        assert [model["id"] for model in json.loads(of_key.body)["data"]] == [MODEL]


@pytest.mark.parametrize("path", ["/v1/models/org/tiny", "/v1/models/org%2Ftiny", "/v1/models/org%2ftiny"])
async def test_a_model_s_id_may_hold_a_slash(house: House, path: str) -> None:
    answer = await got(house, await house.key(), path)
    assert (answer.status, json.loads(answer.body)["id"]) == (200, MODEL)


async def test_a_model_that_is_not_there_and_one_that_is_not_allowed_look_the_same(house: House) -> None:
    absent = await got(house, await house.key(), "/v1/models/gpt-9")
    hidden = await got(house, await house.key("other"), f"/v1/models/{MODEL}")
    for answer, name in ((absent, "gpt-9"), (hidden, MODEL)):
        assert answer.status == 404
        assert answer.error == {
            "message": f"The model '{name}' does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    run = await (await house.ask(await house.key("other"), chat())).answer()
    assert (run.status, run.error) == (404, hidden.error)


async def test_models_is_a_503_until_a_sidecar_has_said_what_it_serves(build: Build) -> None:
    def loading(sidecar: FakeSidecar) -> None:
        sidecar.ready, sidecar.reason, sidecar.models = False, "loading", []

    async with build(prepare=loading) as house:
        key = await house.key()
        for path in ("/v1/models", f"/v1/models/{MODEL}"):
            answer = await got(house, key, path)
            assert (answer.status, answer.error["code"]) == (503, "model_loading")


async def test_head_is_get_without_its_body(house: House) -> None:
    answer = await got(house, await house.key(), "/v1/models", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, None),
        ("", None),
        ("Basic dXNlcjpwYXNz", None),
        ("Bearer sk-wrong", "invalid_api_key"),
        (f"Bearer sk-th_{'a' * 10}_{'b' * 38}", "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_without_a_right_key_nothing_is_served(
    house: House, path: str, authorization: str | None, code: str | None
) -> None:
    wire = await house.connect()
    headers = {} if authorization is None else {"authorization": authorization}
    await wire.send(request(None, b"", method="POST" if path == CHAT else "GET", path=path, headers=headers))
    answer = await wire.answer()
    assert (answer.status, answer.error["code"], answer.error["type"]) == (401, code, "invalid_request_error")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_client_s_own_request_id_is_logged_beside_ours(house: House) -> None:
    key = await house.key()
    await (await house.ask(key, headers={"x-client-request-id": "mine-1"})).answer()
    assert (await house.line())["client_request_id"] == "mine-1"
    await (await house.ask(key, headers={"x-client-request-id": "m" * 513})).answer()
    assert "client_request_id" not in await house.line(count=2)
    assert house.rows()[0]["client_request_id"] == "mine-1"


async def test_a4_no_key_is_in_the_log(house: House) -> None:
    key = await house.key()
    await (await house.ask(key)).answer()
    await house.line()
    assert key not in house.log.getvalue()
