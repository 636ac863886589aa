"""What ties an answer to its log line and to the client's own trace: on every answer, whatever became of it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sidecar import DONE, FINISH, MODEL, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import OPEN, TIERS, WAIT_S, Answer, House, chat, request

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {
    "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01",
    "tracestate": "vendor=1",
    "X-Client-Request-Id": "mine-1",
}
EXTRA = {"x-served-by": "acme", "X-Region": "eu-1"}


@pytest.fixture
async def house(build: Build, tmp_path: Path) -> AsyncIterator[House]:
    """Tiers `extra` and `narrow` add headers to their answers; `narrow` lets one request a minute in."""
    own = {"extra": OPEN | {"response_headers": EXTRA}}
    own["narrow"] = own["extra"] | {"requests_per_minute": 1}
    policy = json.dumps({"version": 1, "tiers": TIERS | own})
    await asyncio.to_thread((tmp_path / "policies/default.yaml").write_text, policy)
    async with build() as running:
        yield running


async def asked(house: House, key: str | None, body: Any = b"", **options: Any) -> Answer:
    wire = await house.connect()
    await wire.send(request(key, body, headers=TRACED | options.pop("headers", {}), **options))
    async with asyncio.timeout(WAIT_S):
        return await wire.answer()


# Every kind of answer, with its status.
ANSWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "whole": (200, {"body": chat(stream=False)}),
    "stream": (200, {"body": chat()}),
    "models": (200, {"method": "GET", "path": "/v1/models"}),
    "model": (200, {"method": "GET", "path": f"/v1/models/{MODEL}"}),
    "tokenize": (200, {"body": {"model": MODEL, "prompt": "Hi"}, "path": "/tokenize"}),
    "messages": (400, {"body": {}, "path": "/v1/messages"}),
    "no JSON": (400, {"body": b"nonsense"}),
    "no such model": (404, {"body": chat(model="other")}),
    "no such response": (404, {"method": "GET", "path": "/v1/responses/resp_x"}),
    "no such encoding": (415, {"body": b"x", "headers": {"content-encoding": "br"}}),
}
# Those that are given before anybody knows who asks.
STRANGERS: dict[str, tuple[int, dict[str, Any]]] = {
    "no such path": (404, {"path": "/v2"}),
    "wrong method": (405, {"method": "GET"}),
    "options": (204, {"method": "OPTIONS"}),
    "wrong key": (401, {"headers": {"authorization": "Bearer sk-th_wrong"}}),
}


@pytest.mark.parametrize("kind", [*ANSWERS, *STRANGERS])
async def test_each_answer_has_its_id_and_its_line_the_client_s_own_ids(house: House, kind: str) -> None:
    status, options = {**ANSWERS, **STRANGERS}[kind]
    options = dict(options)
    wire = await house.connect()
    key = None if kind == "wrong key" else await house.key()
    headers = TRACED | options.pop("headers", {})
    await wire.send(request(key, options.pop("body", b""), headers=headers, **options))
    answer = await wire.answer(bodiless=status == 204)
    assert answer.status == status
    line = await house.line()
    assert answer.headers["x-request-id"] == line["request_id"]
    assert re.fullmatch("req_[0-9a-f]{24}", line["request_id"])
    assert (line["trace_id"], line["client_request_id"]) == (TRACE_ID, "mine-1")
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    assert line["span_id"] != PARENT_ID


async def test_bytes_that_are_no_request_have_an_id_and_a_trace_too(house: House) -> None:
    wire = await house.connect()
    await wire.send(b"NONSENSE\r\n\r\n")
    answer = await wire.answer()
    line = await house.line()
    assert (answer.status, answer.headers["x-request-id"]) == (400, line["request_id"])
    assert line["trace_id"]
    assert line["span_id"]


async def test_the_sidecar_and_the_ledger_are_told(house: House) -> None:
    await asked(house, await house.key(), chat())
    line, row = await house.line(), await house.row("settled")
    told = house.sidecar.received[0].headers
    assert told["traceparent"] == f"00-{TRACE_ID}-{line['span_id']}-01"
    assert told["tracestate"] == "vendor=1"
    assert (row["trace_id"], row["client_request_id"]) == (TRACE_ID, "mine-1")


async def test_several_fields_of_tracestate_are_one_list(house: House) -> None:
    wire = await house.connect()
    head, _, body = request(await house.key(), chat(), headers=TRACED).partition(b"\r\n\r\n")
    await wire.send(head + b"\r\ntracestate: a=1,\tb=2\r\n\r\n" + body)
    async with asyncio.timeout(WAIT_S):
        assert (await wire.answer()).status == 200
    assert house.sidecar.received[0].headers["tracestate"] == "vendor=1,a=1,\tb=2"


async def test_a_stream_that_breaks_has_its_id_too(house: House) -> None:
    house.sidecar.script = [delta("a"), usage_comment(1)]
    house.sidecar.always_produced = 1
    answer = await asked(house, await house.key(), chat())
    assert not answer.whole
    line = await house.line()
    assert (answer.headers["x-request-id"], line["ending"]) == (line["request_id"], "upstream_failed")


async def test_what_nobody_expected_has_its_trace_in_the_log(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("proxy.admission.gate.Admission.check", broken)
    answer = await asked(house, await house.key(), chat())
    line = await house.line("request_failed")
    assert (answer.status, line["request_id"]) == (500, answer.headers["x-request-id"])
    assert (line["trace_id"], len(line["span_id"])) == (TRACE_ID, 16)


@pytest.mark.parametrize("kind", ANSWERS)
async def test_a_tier_s_own_headers_are_on_every_answer_of_its_keys(house: House, kind: str) -> None:
    status, options = ANSWERS[kind]
    answer = await asked(house, await house.key("extra"), **options)
    assert answer.status == status
    assert {name.lower(): answer.headers.get(name.lower()) for name in EXTRA} == {
        "x-served-by": "acme",
        "x-region": "eu-1",
    }


async def test_they_are_on_refusals_and_on_streams_that_break_and_on_nobody_else_s_answers(house: House) -> None:
    narrow = await house.key("narrow")
    first, second = await asked(house, narrow, chat()), await asked(house, narrow, chat())
    assert (first.status, second.status) == (200, 429)
    unscoped = await asked(house, await house.key("extra", scopes=["models"]), chat())
    assert unscoped.status == 403
    house.sidecar.script = [delta("a"), usage_comment(1)]
    house.sidecar.always_produced = 1
    broken = await asked(house, await house.key("extra"), chat())
    assert not broken.whole
    assert {answer.headers["x-served-by"] for answer in (first, second, unscoped, broken)} == {"acme"}
    house.sidecar.script = [delta("a"), usage_comment(1), FINISH + DONE]
    for key in (await house.key(), None):
        assert "x-served-by" not in (await asked(house, key, chat())).headers


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (lambda: {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}, True),
        (lambda: {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01-more"}, False),
        (lambda: {"traceparent": f"ff-{TRACE_ID}-{PARENT_ID}-01"}, False),
        (lambda: {"traceparent": f"00-{'0' * 32}-{PARENT_ID}-01"}, False),
        (lambda: {"traceparent": f"00-{TRACE_ID.upper()}-{PARENT_ID}-01"}, False),
    ],
)
async def test_a_trace_is_gone_on_with_only_if_it_is_one(
    house: House, sent: Callable[[], dict[str, str]], kept: bool
) -> None:
    wire = await house.connect()
    await wire.send(request(None, headers=sent()))
    await wire.answer()
    assert ((await house.line())["trace_id"] == TRACE_ID) == kept


@pytest.mark.parametrize("given", ["x" * 513, "ü", "a\tb"])
async def test_a_client_s_id_that_is_none_is_no_matter(house: House, given: str) -> None:
    wire = await house.connect()
    raw = request(await house.key(), method="GET", path="/v1/models", headers={"X-Client-Request-Id": "@"})
    await wire.send(raw.replace(b"@", given.encode()))
    answer = await wire.answer()
    assert answer.status in {200, 400}
    assert "client_request_id" not in await house.line()
