"""What an answer says of its key's limits: on every one of them, whatever else it says."""

from typing import Any

import pytest

from tests.fakes.sidecar import FakeSidecar
from tests.wire.proxy.house import House, Wire, chat, request

OPENAI = {f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")}
IETF = {"ratelimit-policy", "ratelimit"}
ALWAYS = {"x-request-id", "openai-processing-ms", "openai-version"}


async def asked(house: House, raw: bytes) -> Any:
    wire: Wire = await house.connect()
    await wire.send(raw)
    return await wire.answer()


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("chat", 200),
        ("stream", 200),
        ("models", 200),
        ("tokenize", 200),
        ("not json", 400),
        ("unknown model", 404),
        ("too much output", 400),
        ("too large", 429),
        ("upstream refuses", 400),
        ("upstream is full", 503),
        ("not found", 404),
    ],
)
async def test_openais_headers_and_the_ietfs_are_on_every_answer_to_a_key(house: House, what: str, status: int) -> None:
    key = await house.key("upto")
    if what.startswith("upstream"):
        code = "server_is_overloaded" if status == 503 else None
        house.sidecar.refusal = (status, {"message": "no", "type": "x", "param": None, "code": code}, {})
    body: dict[str, dict[str, Any] | bytes] = {
        "not json": b"{",
        "unknown model": chat(model="gpt-9"),
        "too much output": chat(max_tokens=500),
        "too large": chat(max_tokens=99),
        "stream": chat(),
    }
    match what:
        case "models":
            answer = await asked(house, request(key, b"", method="GET", path="/v1/models"))
        case "not found":
            answer = await asked(house, request(key, b"", method="GET", path="/v1/models/gpt-9"))
        case "tokenize":
            answer = await asked(house, request(key, {"model": "org/tiny", "prompt": "a"}, path="/tokenize"))
        case _:
            answer = await asked(house, request(key, body.get(what, chat(stream=False))))
    assert answer.status == status, answer.body
    assert set(answer.headers) >= OPENAI | IETF | ALWAYS
    assert answer.headers["x-ratelimit-limit-tokens"] == "90"


async def test_a_stranger_is_told_of_no_limits(house: House) -> None:
    answer = await (await house.ask(None, chat())).answer()
    assert answer.status == 401
    assert not set(answer.headers) & (OPENAI | IETF)
    assert set(answer.headers) >= ALWAYS


async def test_the_headers_of_a_refusal_are_those_of_the_model(build: Any) -> None:
    def prepare(sidecar: FakeSidecar) -> None:
        sidecar.prompt_tokens = 7

    async with build(prepare=prepare) as house:
        key = await house.key("unlike")
        first = await (await house.ask(key, chat(stream=False))).answer()
        assert (first.status, first.headers["x-ratelimit-limit-requests"]) == (200, "1")
        refused = await (await house.ask(key, chat(stream=False))).answer()
        assert (refused.status, refused.headers["x-ratelimit-limit-requests"]) == (429, "1")
        assert "for the model 'org/tiny' in the tier 'unlike'" in refused.error["message"]
        other = await asked(house, request(key, b"", method="GET", path="/v1/models"))
        assert other.headers["x-ratelimit-limit-requests"] == "50"
