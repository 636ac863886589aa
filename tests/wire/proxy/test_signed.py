"""Signed requests in bytes: what is taken once, what an attacker makes of it, and what that costs whom."""

import asyncio
import datetime as dt
import gzip
import json
from typing import Any

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.records import Rotation
from proxy.settings import Limits, Replay
from proxy.signing import Signer, content_digest
from tests.fakes.sidecar import MODEL
from tests.fakes.valkey import running
from tests.wire.proxy.house import WAIT_S, Answer, House, chat, request

PATH = "/v1/chat/completions"
BODY = json.dumps(chat(stream=False)).encode()


def signed(
    house: House, secret: str, body: bytes = BODY, *, method: str = "POST", path: str = PATH, **headers: str
) -> bytes:
    """A good request for the listener's own address."""
    url = f"http://127.0.0.1:{house.ready['port']}{path}"
    told = Signer(secret).headers(method, url, body, headers)
    host = {"host": f"127.0.0.1:{house.ready['port']}"}
    return request(None, body, method=method, path=path, headers=host | headers | told)


async def answered(house: House, raw: bytes) -> Answer:
    wire = await house.connect()
    await wire.send(raw)
    return await wire.answer()


@pytest.fixture
async def secret(house: House) -> str:
    return await house.key("signed", signed=True)


async def test_r_a_signed_request_runs_once_and_its_replay_not_at_all(house: House, secret: str) -> None:
    assert secret.startswith("ths_")
    raw = signed(house, secret)
    assert (await answered(house, raw)).status == 200
    for _ in range(2):
        again = await answered(house, raw)
        assert (again.status, again.error["code"]) == (401, "nonce_replayed")
        assert again.headers["x-should-retry"] == "false"
    assert len(house.sidecar.received) == 1
    assert [row["state"] for row in house.rows()] == ["settled"]
    assert (await answered(house, signed(house, secret))).status == 200


async def test_r_nothing_that_was_changed_on_the_way_is_served(house: House, secret: str) -> None:
    raw = signed(house, secret)
    other = BODY.replace(b"Hi", b"Ho")
    changes = {
        "body": raw.replace(BODY, other),
        "body and digest": raw.replace(BODY, other).replace(
            content_digest(BODY).encode(), content_digest(other).encode()
        ),
        "path": raw.replace(PATH.encode(), b"/v1/completions"),
        "query": raw.replace(PATH.encode(), PATH.encode() + b"?x=1"),
        "host": raw.replace(b"host: 127.0.0.1", b"host: localhost"),
        "foreign host": raw.replace(b"host: 127.0.0.1", b"host: evil.example.com"),
        "encoding": raw.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1),
    }
    for what, changed in changes.items():
        assert changed != raw
        answer = await answered(house, changed)
        assert answer.status == (400 if what == "encoding" else 401), what
        assert answer.error["code"] == (None if what == "encoding" else "invalid_signature")
    assert house.sidecar.received == []
    # None of that used the nonce up: the client's own request is served.
    assert (await answered(house, raw)).status == 200


async def test_r_who_was_not_verified_is_nobody(house: House, secret: str) -> None:
    """A public id is no proof: it is in no line, no metric, and no key counts as used by it."""
    raw = signed(house, secret)
    await answered(house, raw.replace(BODY, BODY.replace(b"Hi", b"Ho")))
    line = await house.line()
    assert (line.get("key_id"), line.get("account_id"), line["error_code"]) == (None, None, "invalid_signature")
    assert [row["last_used"] for row in house.rows("api_key")] == [None]
    await answered(house, raw)
    assert (await house.line(count=2))["key_id"] == secret[4:14]


async def test_r_forgers_are_told_to_wait_and_the_key_s_owner_is_not(build: Any) -> None:
    async with build(limits=Limits(auth_failures_per_minute=2)) as house:
        secret = await house.key("signed", signed=True)
        forged = signed(house, secret).replace(BODY, BODY.replace(b"Hi", b"Ho"))
        statuses = [(await answered(house, forged)).status for _ in range(4)]
        assert statuses == [401, 401, 429, 429]
        assert (await answered(house, signed(house, secret))).status == 200


async def test_r_a_body_that_is_too_large_is_refused_before_it_is_verified(build: Any) -> None:
    async with build(limits=Limits(max_body_bytes=100)) as house:
        secret = await house.key("signed", signed=True)
        assert (await answered(house, signed(house, secret, b"x" * 101))).status == 413


async def test_the_digest_is_of_the_body_as_it_was_sent(house: House, secret: str) -> None:
    raw = signed(house, secret, gzip.compress(BODY), **{"content-encoding": "gzip"})
    assert (await answered(house, raw)).status == 200


async def test_r_pages_and_questions_are_signed_too(house: House, secret: str) -> None:
    page = signed(house, secret, b"", method="GET", path="/v1/models")
    question = signed(house, secret, b'{"prompt":"Hi"}', path="/tokenize")
    for raw in (page, question):
        assert (await answered(house, raw)).status == 200
        assert (await answered(house, raw)).error["code"] == "nonce_replayed"
    bare = request(f"thp_{secret[4:14]}", method="GET", path="/v1/models")
    assert (await answered(house, bare)).error["code"] == "invalid_signature"


@pytest.mark.parametrize("query", [b"?x=\xff", b"?x=\xc3\xa9", b"?\x80"])
async def test_r_bytes_in_a_url_that_nobody_signs_are_refused(house: House, secret: str, query: bytes) -> None:
    raw = signed(house, secret).replace(PATH.encode(), PATH.encode() + query, 1)
    answer = await answered(house, raw)
    assert answer.status in {400, 401}


async def test_r_an_old_request_is_refused_with_our_time(house: House, secret: str) -> None:
    url = f"http://127.0.0.1:{house.ready['port']}{PATH}"
    for ahead_s in (-301, 40):
        now_s = dt.datetime.now(dt.UTC).timestamp() + ahead_s
        told = Signer(secret, now_s=lambda now_s=now_s: now_s).headers("POST", url, BODY)
        host = {"host": f"127.0.0.1:{house.ready['port']}"}
        answer = await answered(house, request(None, BODY, headers=host | told))
        assert (answer.status, answer.error["code"]) == (401, "signature_expired")
        assert answer.headers["date"].endswith("GMT")


async def test_r_a_tier_for_signed_requests_takes_no_secret(house: House) -> None:
    answer = await (await house.ask(await house.key("signed"))).answer()
    assert (answer.status, answer.error["code"]) == (401, "invalid_signature")


async def test_an_unknown_or_revoked_id_is_a_wrong_key_like_any_other(house: House, secret: str) -> None:
    raw = signed(house, secret)
    unknown = raw.replace(secret[4:14].encode(), b"zzzzzzzzzz")
    wrong = await answered(house, unknown)
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
    await house.revoke(f"sk-th_{secret[4:]}")
    revoked = await answered(house, raw)
    assert (revoked.status, revoked.error) == (401, wrong.error)


async def test_a_key_that_signs_is_rotated_like_any_other(house: House, secret: str) -> None:
    async with AdminClient(house.settings.admin.socket) as client:
        new = (await client.rotate_key(secret[4:14], Rotation())).secret
        assert new.startswith(f"ths_{secret[4:14]}_")
        # Until its grace ends the old one signs, too.
        assert [(await answered(house, signed(house, each))).status for each in (secret, new)] == [200, 200]
        newest = (await client.rotate_key(secret[4:14], Rotation(grace_s=0))).secret
    for each, status in ((secret, 401), (new, 401), (newest, 200)):
        assert (await answered(house, signed(house, each))).status == status


async def test_r_a_restart_forgets_no_signature(build: Any) -> None:
    names = {"public_authorities": ["api.example.com"]}
    async with build(**names) as house:
        secret = await house.key("signed", signed=True)
        told = Signer(secret).headers("POST", f"https://api.example.com{PATH}", BODY)
        # As a TLS terminator hands it on: the name is the client's, the scheme and the port are not.
        raw = request(None, BODY, headers={"host": "API.example.com:443", **told})
        assert (await answered(house, raw)).status == 200
        assert (await answered(house, signed(house, secret))).error["code"] == "invalid_signature"
    async with build(**names) as house:
        assert (await answered(house, raw)).error["code"] == "nonce_replayed"


async def test_a3_the_database_has_the_public_key_only(house: House, secret: str) -> None:
    (row,) = house.rows("api_key")
    assert (len(row["mac"]), row["mac_version"]) == (32, 2)
    assert secret[15:47].encode() not in b"".join(str(value).encode() for value in row.values())


def signed_now(secret: str) -> bytes:
    told = Signer(secret).headers("POST", f"https://api.example.com{PATH}", BODY)
    return request(None, BODY, headers={"host": "api.example.com", **told})


async def taken(house: House, secret: str) -> bytes:
    """The first request that is let in, once the store remembers for long enough: no clock is ahead here."""
    async with asyncio.timeout(WAIT_S):
        while True:
            raw = signed_now(secret)
            answer = await answered(house, raw)
            if answer.status == 200:
                return raw
            assert (answer.status, answer.error["code"]) == (503, "replay_store_unavailable")
            assert answer.headers["x-should-retry"] == "true"
            await asyncio.sleep(0.1)


async def test_r_memory_refuses_after_a_restart_what_was_signed_before_it(build: Any) -> None:
    settings = {"public_authorities": ("api.example.com",), "replay": Replay(store="memory", ahead_s=0)}
    async with build(**settings) as house:
        secret = await house.key("signed", signed=True)
        raw = await taken(house, secret)
        assert (await answered(house, raw)).error["code"] == "nonce_replayed"
        assert len(house.sidecar.received) == 1
    async with build(**settings) as house:
        assert (await answered(house, raw)).error["code"] == "replay_store_unavailable"
        await taken(house, secret)
        assert len(house.sidecar.received) == 1


async def test_r_a_full_memory_is_a_503_and_nothing_runs(build: Any) -> None:
    async with build(replay=Replay(store="memory", max_entries=1)) as house:
        key = await house.key("duplicate")
        for nonce, status in (("a" * 16, 200), ("a" * 16, 409), ("b" * 16, 503)):
            answer = await (await house.ask(key, chat(stream=False), headers={"x-request-nonce": nonce})).answer()
            assert answer.status == status
        assert answer.error["code"] == "replay_store_unavailable"
        assert len(house.sidecar.received) == 1
        await house.until(lambda: sorted(row["state"] for row in house.rows()) == ["settled", "void"])


async def test_f8_a_valkey_that_is_killed_is_a_503_and_the_rest_goes_on(build: Any) -> None:
    with running() as server:
        replay = Replay(store="valkey", valkey_url=server.url, valkey_timeout_s=5.0, ahead_s=0)
        async with build(replay=replay, public_authorities=("api.example.com",)) as house:
            secret, plain = await house.key("signed", signed=True), await house.key()
            raw = await taken(house, secret)
            assert (await answered(house, raw)).error["code"] == "nonce_replayed"
            server.kill()
            assert (await answered(house, signed_now(secret))).error["code"] == "replay_store_unavailable"
            assert (await (await house.ask(plain)).answer()).status == 200
            server.start()
            # It has forgotten everything.
            assert (await answered(house, raw)).error["code"] == "replay_store_unavailable"
            await taken(house, secret)


async def test_a_client_of_anthropic_s_may_show_its_public_id_in_both_headers(house: House, secret: str) -> None:
    """Its SDK puts the key into x-api-key, and the hook puts it where it is signed."""
    body = json.dumps({"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    host = {"host": f"127.0.0.1:{house.ready['port']}"}
    told = Signer(secret).headers("POST", f"http://{host['host']}/v1/messages", body)
    both = request(None, body, path="/v1/messages", headers={**host, **told, "x-api-key": f"thp_{secret[4:14]}"})
    assert (await answered(house, both)).status not in {400, 401, 403}
    alone = request(None, body, path="/v1/messages", headers={**host, "x-api-key": f"thp_{secret[4:14]}"})
    assert (await answered(house, alone)).status == 401
