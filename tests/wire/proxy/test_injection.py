"""Words that mean something to a database, a file system or a network mean nothing here."""

import asyncio
from typing import Any

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.records import NewAccount
from proxy.settings import Limits
from sidecar.wire.errors import ApiError
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request

SQL = [
    "' OR '1'='1",
    "'; DROP TABLE api_key; --",
    "x' UNION SELECT mac FROM api_key --",
    "1; SELECT pg_sleep(10); --",
    "%' AND randomblob(1000000000) --",
    "\"; ATTACH DATABASE '/tmp/x' AS x; --",
    ":id {id} %(id)s ? $1",
]


async def test_a9_a_key_that_is_sql_is_a_wrong_key(build: Build) -> None:
    async with build(Limits(auth_failures_per_minute=1000)) as house:
        before = await asyncio.to_thread(house.rows, "api_key")
        for words in SQL:
            for key in (words, f"sk-th_{words}", f"sk-th_{words[:10]:_<10}_{'a' * 38}"):
                answer = await (await house.ask(None, headers={"authorization": f"Bearer {key}"})).answer()
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert await asyncio.to_thread(house.rows, "api_key") == before


async def test_a9_what_a_client_names_is_a_name(house: House) -> None:
    key = await house.key()
    for words in SQL:
        answer = await (await house.ask(key, chat(model=words))).answer()
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        wire = await house.ask(key, headers={"x-client-request-id": words})
        assert (await wire.answer()).status == 200
        wire = await house.ask(key, b"", method="GET", path="/v1/responses/" + words.replace(" ", "%20"))
        assert (await wire.answer()).status in {400, 404}
    rows = await asyncio.to_thread(house.rows)
    assert sorted(row["client_request_id"] for row in rows) == sorted(SQL)


async def test_a9_what_an_operator_names_is_a_name(house: House) -> None:
    async with AdminClient(house.settings.admin.socket) as client:
        for words in SQL:
            await client.create_account(NewAccount(words))
            assert words in [account.name for account in await client.list_accounts()]
        with pytest.raises(ApiError):
            await client.revoke_key("x' OR '1'='1")


async def test_c7_a_model_s_name_is_looked_up_and_nothing_else(house: House) -> None:
    key = await house.key()
    for name in ("../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/m", "gpt2", "org/.."):
        answer = await (await house.ask(key, chat(model=name))).answer()
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert house.sidecar.received == []


async def test_a14_no_address_that_a_client_names_is_gone_to(house: House) -> None:
    came: list[Any] = []
    lure = await asyncio.start_server(lambda _reader, writer: (came.append(1), writer.close()), "127.0.0.1", 0)
    host = f"127.0.0.1:{lure.sockets[0].getsockname()[1]}"
    url = f"http://{host}/x"
    key = await house.key()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file": {"file_url": url}}]
    for body, options in (
        (chat(messages=[{"role": "user", "content": content}]), {}),
        (chat(model=url), {}),
        (chat(webhook=url, base_url=url, metadata={"url": url}), {}),
        (chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}), {}),
        (chat(), {"path": url + "/v1/chat/completions"}),
        (chat(), {"path": f"//{host}/v1/chat/completions"}),
        (chat(), {"headers": {"host": host, "x-forwarded-host": host, "forwarded": f"host={host}", "referer": url}}),
        (chat(), {"headers": {"connection": f"{url}, upgrade", "upgrade": "h2c", "via": host}}),
    ):
        wire = await house.ask(key, body, **options)
        await wire.answer()
    wire = await house.connect()
    await wire.send(request(key, method="CONNECT", path=host))
    assert await wire.head()
    lure.close()
    assert came == []
