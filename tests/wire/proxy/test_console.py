"""The console over the wire: its headers, who may see what, and where there is none of it."""

import asyncio
import json
from typing import Any

import pytest

from proxy.console.files import load
from proxy.console.trial import Trial
from proxy.console.trials import Trials
from proxy.settings import Admin
from tests.fakes.sidecar import MODEL, STREAM
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import TIERS, Answer, House, Wire, chat, request

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOST = {"host": "127.0.0.1:8001"}
DATA = ["/console/data/samples", "/console/data/live", "/console/data/policy"]
SCOPES = ["admin", "chat", "completions", "responses", "messages", "embeddings", "tokenize", "models"]


async def opened(
    house: House,
    path: str,
    key: str | None = None,
    *,
    method: str = "GET",
    body: Any = b"",
    unix: bool = False,
    **head: str,
) -> Wire:
    wire = await (house.connect_unix() if unix else house.connect(admin=True))
    headers = HOST | {name.replace("_", "-"): value for name, value in head.items()}
    await wire.send(request(key, body, method=method, path=path, headers=headers))
    return wire


async def got(house: House, path: str, key: str | None = None, **options: Any) -> Answer:
    return await (await opened(house, path, key, **options)).answer()


async def event(wire: Wire) -> dict[str, Any]:
    chunk = await wire.chunk()
    assert chunk is not None
    found: dict[str, Any] = json.loads(chunk.decode().removeprefix("data: "))
    return found


async def test_the_entrances_lead_to_the_console(house: House) -> None:
    for path in ("/", "/console"):
        answer = await got(house, path)
        assert (answer.status, answer.headers["location"]) == (302, "/console/")


async def test_every_file_is_served_with_the_content_policy_and_without_a_key(house: House) -> None:
    for path, file in (await asyncio.to_thread(load)).items():
        answer = await got(house, path)
        assert (answer.status, answer.body) == (200, file.body)
        assert answer.headers["content-type"] == file.content_type
        assert answer.headers["content-security-policy"] == CONTENT_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        again = await got(house, path, if_none_match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")


async def test_no_other_file_is_there(house: House) -> None:
    for path in ("/console/../settings.py", "/console/vendor/SHA256SUMS", "/console/%2e%2e/x", "/console/nothing.js"):
        answer = await got(house, path)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_a7_data_needs_an_administrative_key(house: House) -> None:
    chat_key, looks = await house.key(), await house.key(scopes=["admin:read"])
    for path in DATA:
        assert (await got(house, path)).status == 401
        assert (await got(house, path, "sk-th_AAAAAAAAAA_wrong")).status == 401
        assert (await got(house, path, chat_key)).error["code"] == "insufficient_scope"
        wire = await opened(house, path, looks)
        status, headers = await wire.head()
        assert status == 200
        assert headers["content-security-policy"] == CONTENT_POLICY
        assert headers["cache-control"] in {"no-store", "no-cache"}
        assert headers["x-content-type-options"] == "nosniff"


async def test_a7_from_other_networks_there_is_no_console(build: Build) -> None:
    async with build(admin=Admin(api_from=("192.0.2.0/24",))) as house:
        for path in ("/", "/console/", "/console/app.js", "/console/v1/models", *DATA):
            assert (await got(house, path)).status == 404
        assert (await got(house, "/livez")).status == 200


async def test_it_can_be_left_out(build: Build) -> None:
    async with build(admin=Admin(console=False)) as house:
        for path in ("/", "/console", "/console/", "/console/data/samples", "/console/v1/models"):
            answer = await got(house, path, await house.key(scopes=["admin"]))
            assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_on_the_socket_no_key_is_asked_for(house: House) -> None:
    assert json.loads((await got(house, "/console/data/access")).body) == {"key_needed": True}
    assert json.loads((await got(house, "/console/data/access", unix=True)).body) == {"key_needed": False}
    assert (await got(house, "/console/data/policy", unix=True)).status == 200


@pytest.mark.parametrize("unix", [False, True])
async def test_a_page_of_another_site_gets_nothing(house: House, unix: bool) -> None:
    key = await house.key(scopes=["admin"])
    for path in (*DATA, "/admin/v1/keys"):
        for head in ({"origin": "http://evil.example"}, {"sec_fetch_site": "cross-site"}):
            answer = await got(house, path, key, unix=unix, **head)
            assert (answer.status, answer.error["code"]) == (403, "cross_origin")
    made = await got(house, "/admin/v1/accounts", unix=unix, method="POST", body={"name": "x"}, origin="null")
    assert made.error["code"] == "cross_origin"


async def test_a_name_that_was_rebound_to_us_gets_nothing(house: House) -> None:
    for path in ("/console/", *DATA):
        answer = await got(house, path, host="evil.example:8001")
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
    answer = await got(house, "/admin/v1/keys", unix=True, host="evil.example:8001")
    assert answer.error["code"] == "host_not_allowed"


async def test_a_name_of_ours_is_taken(build: Build) -> None:
    async with build(public_authorities=("console.example",)) as house:
        assert (await got(house, "/console/", host="console.example")).status == 200


async def test_live_tells_of_requests_as_they_begin_and_end(house: House) -> None:
    admin, key = await house.key(scopes=["admin:read"]), await house.key()
    gate = asyncio.Event()
    house.sidecar.script = [gate, *STREAM]
    wire = await opened(house, "/console/data/live", admin)
    assert (await wire.head())[1]["content-type"] == "text/event-stream"
    whole = await event(wire)
    assert (whole["whole"], whole["requests"]) == (True, [])
    asked = await house.ask(key, chat())
    (began,) = (await event(wire))["requests"]
    assert (began["model"], began["tier"], began["stream"], "ended" in began) == (MODEL, "open", True, False)
    gate.set()
    await asked.answer()
    (ended,) = (await event(wire))["requests"]
    assert (ended["id"], ended["status"], ended["ending"]) == (began["id"], 200, "complete")
    assert ended["completion_tokens"] == 3


async def test_a7_a_revoked_key_does_not_go_on_watching(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.console.feed.LIFE_S", 0.3)
    key = await house.key(scopes=["admin:read"])
    wire = await opened(house, "/console/data/live", key)
    await wire.head()
    await event(wire)
    await house.revoke(key)
    assert await wire.chunk() == b""
    assert (await got(house, "/console/data/live", key)).status == 401


async def test_who_watches_does_not_hold_up_the_end_of_the_server(build: Build) -> None:
    async with build() as house:
        wire = await opened(house, "/console/data/live", await house.key(scopes=["admin"]))
        await wire.head()
        await event(wire)
        house.stop.tell()
        # It has its proper end: it was told, and not cut off when its time was over.
        assert await wire.chunk() == b""


async def test_the_policy_is_shown_as_it_is_and_as_it_is_written(house: House) -> None:
    shown = json.loads((await got(house, "/console/data/policy", await house.key(scopes=["admin"]))).body)
    assert shown["revision"] == house.ready["revision"]
    assert [tier["name"] for tier in shown["tiers"]] == sorted(TIERS)
    assert [file["name"] for file in shown["files"]] == ["default.yaml"]
    assert json.loads(shown["files"][0]["text"])["tiers"] == TIERS


async def test_samples_are_given_from_a_time_on(house: House) -> None:
    key = await house.key(scopes=["admin"])
    assert json.loads((await got(house, "/console/data/samples?after=0", key)).body)["every_s"] == 5.0
    assert (await got(house, "/console/data/samples?after=x", key)).status == 400
    assert (await got(house, "/console/data/samples", key, method="DELETE")).status == 405


async def test_the_playground_goes_through_the_gate(house: House) -> None:
    key = await house.key("few")
    answer = await got(house, "/console/v1/chat/completions", key, method="POST", body=chat())
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert (await house.row("settled"))["key_id"] == key.removeprefix("sk-th_").partition("_")[0]
    listed = json.loads((await got(house, "/console/v1/models", key)).body)
    assert [model["id"] for model in listed["data"]] == [MODEL]
    refused = await got(house, "/console/v1/chat/completions", None, method="POST", body=chat())
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert (await got(house, "/console/v1/chat/completions", key)).status == 405
    assert (await got(house, "/console/v1/embeddings", key, method="POST", body=b"{}")).status == 404


@pytest.mark.timeout(300)
async def test_a_candidate_is_tried_on_what_was_recorded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # It runs after everything else that the machine has to do.
    monkeypatch.setattr("tests.wire.proxy.house.WAIT_S", 100.0)
    admin, key = await house.key(scopes=SCOPES), await house.key()
    for _ in range(3):
        assert (await (await house.ask(key)).answer()).status == 200
    await house.line(count=3)
    strict = json.dumps({"version": 1, "tiers": {"open": TIERS["open"] | {"requests_per_minute": 1}}})
    other = json.dumps({"version": 1, "tiers": {"other": TIERS["open"]}})
    wanted = {"files": {"open.yaml": strict, "other.yaml": other}, "days": 1}
    run, begun, second_answered = Trials._run, asyncio.Event(), asyncio.Event()

    async def held(self: Trials, trial: Trial) -> bytes:
        begun.set()
        await second_answered.wait()
        return await run(self, trial)

    monkeypatch.setattr(Trials, "_run", held)
    first = await opened(house, "/console/data/simulate", admin, method="POST", body=wanted)
    await begun.wait()
    assert (await got(house, "/console/data/simulate", admin, method="POST", body=wanted)).status == 409
    second_answered.set()
    found = json.loads((await first.answer()).body)["report"]
    assert (found["requests"], found["let_in"], found["refused"]) == (3, 1, 2)
    assert {one["rule"] for one in found["refusals"]} == {"requests_per_minute"}
    wrong = {"files": {"open.yaml": strict, "other.yaml": "version: 1\ntiers: 3\n"}}
    answer = await got(house, "/console/data/simulate", admin, method="POST", body=wrong)
    (problem,) = json.loads(answer.body)["problems"]
    assert problem.startswith("other.yaml:2:8: ")


@pytest.mark.parametrize("files", [{}, {"../a.yaml": ""}, {"": ""}, {"a\n.yaml": ""}, {"a.yaml": 3}, None])
async def test_a_candidate_that_is_no_set_of_files_is_refused(house: House, files: object) -> None:
    admin = await house.key(scopes=SCOPES)
    answer = await got(house, "/console/data/simulate", admin, method="POST", body={"files": files})
    assert answer.status == 400
    assert b"files" in answer.body
