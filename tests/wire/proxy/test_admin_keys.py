"""The admin API over TCP: for keys with an administrative scope, from near, and for no more than the key itself may."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from proxy.admin.client import AdminClient
from proxy.admin.records import AuditQuery, NewAccount
from proxy.admin.table import ACTIONS
from proxy.settings import Admin, Limits
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, chat, request

KEYS = "/admin/v1/keys"
CHAT = ["admin", "chat"]


async def asked(
    house: House, path: str, key: str | None = None, body: object = None, *, method: str = "", **headers: str
) -> Answer:
    wire = await house.connect(admin=True)
    content = b"" if body is None else json.dumps(body).encode()
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    await wire.send(request(key, content, method=method or ("POST" if content else "GET"), path=path, headers=told))
    return await wire.answer()


def id_of(secret: str) -> str:
    return secret.removeprefix("sk-th_").partition("_")[0]


def new_key(**fields: object) -> dict[str, object]:
    return {"account": "account-0", "tier": "open", "name": "made", **fields}


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
async def test_a7_no_action_is_done_over_tcp_without_an_administrator_s_key(house: House, action: Any) -> None:
    path, method = action.url.replace("{id}", "x"), action.method
    without = await asked(house, path, None, {}, method=method)
    assert (without.status, without.error["code"]) == (401, None)
    wrong = await asked(house, path, "sk-th_wrong", {}, method=method)
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
    plain = await asked(house, path, await house.key(), {}, method=method)
    assert (plain.status, plain.error["code"]) == (403, "insufficient_scope")
    assert f"'{action.scope}'" in plain.error["message"]


async def test_a7_who_may_look_may_not_change(house: House) -> None:
    reader = await house.key(scopes=["admin:read"])
    for action in ACTIONS:
        answer = await asked(house, action.url.replace("{id}", id_of(reader)), reader, {}, method=action.method)
        if action.looks:
            # Without a time it says nothing, but who asks may ask.
            assert answer.status == 400
        elif action.method != "GET":
            assert (answer.status, answer.error["code"]) == (403, "insufficient_scope"), action.name
        else:
            # An account has no key's id.
            assert answer.status == (404 if action.name == "show_account" else 200), action.name


async def test_a7_there_is_no_api_for_other_networks(build: Build) -> None:
    async with build(admin=Admin(api_from=("192.0.2.0/24",))) as house:
        admin = await house.key(scopes=["admin"])
        for path in (KEYS, "/admin/v1/openapi.json", "/admin/v1/state"):
            answer = await asked(house, path, admin)
            assert (answer.status, answer.error["code"]) == (404, "unknown_url")
        assert (await asked(house, "/livez")).status == 200


async def test_a7_a_public_id_is_no_key(house: House) -> None:
    signed = await house.key(scopes=["admin"], signed=True)
    async with AdminClient(house.settings.admin.socket) as client:
        (known,) = await client.list_keys()
    for shown in (f"thp_{known.key_id}", signed):
        answer = await asked(house, KEYS, shown)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_a7_a_key_administers_only_from_where_it_may_come(house: House) -> None:
    near, far = await house.key(scopes=["admin"]), await house.key(scopes=["admin"], allow_from=["192.0.2.0/24"])
    assert (await asked(house, KEYS, near)).status == 200
    answer = await asked(house, KEYS, far)
    assert (answer.status, answer.error["code"]) == (403, "address_not_allowed")


async def test_a8_a_key_makes_none_that_may_more_than_itself(house: House) -> None:
    admin = await house.key(scopes=CHAT)
    for scopes in (None, ["models"], ["chat", "embeddings"]):
        answer = await asked(house, KEYS, admin, new_key(scopes=scopes))
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    for scopes in (["chat"], ["admin:read"], CHAT):
        answer = await asked(house, KEYS, admin, new_key(scopes=scopes))
        assert answer.status == 200
        made = json.loads(answer.body)["secret"]
        assert json.loads((await asked(house, f"{KEYS}/{id_of(made)}", admin)).body)["scopes"] == sorted(scopes)


async def test_a8_a_key_gets_no_more_by_changing_or_rotating(house: House) -> None:
    admin, stronger = await house.key(scopes=CHAT), await house.key()
    for path, body, method in (
        (f"{KEYS}/{id_of(admin)}", {"scopes": ["admin", "models"]}, "PATCH"),
        (f"{KEYS}/{id_of(admin)}", {"scopes": None}, "PATCH"),
        (f"{KEYS}/{id_of(stronger)}", {"tier": "one"}, "PATCH"),
        (f"{KEYS}/{id_of(stronger)}/rotate", {}, "POST"),
    ):
        answer = await asked(house, path, admin, body, method=method)
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    # To end one takes no more than to administer.
    assert (await asked(house, f"{KEYS}/{id_of(stronger)}/revoke", admin, {})).status == 200


@pytest.mark.parametrize("field", ["role", "secret", "mac", "generation", "key_id", "revoked", "account_id"])
async def test_a8_fields_that_are_the_server_s_are_refused(house: House, field: str) -> None:
    admin = await house.key(scopes=["admin", "chat"])
    for path, method in ((KEYS, "POST"), (f"{KEYS}/{id_of(admin)}", "PATCH")):
        body = {**(new_key(scopes=["chat"]) if method == "POST" else {}), field: 1}
        answer = await asked(house, path, admin, body, method=method)
        assert answer.status == 400
        assert field in answer.error["message"]


async def test_a1_wrong_keys_are_slowed_on_the_admin_port_too_and_good_ones_never(build: Build) -> None:
    async with build(Limits(auth_failures_per_minute=2)) as house:
        admin = await house.key(scopes=["admin:read"])
        refused = [(await asked(house, KEYS, "sk-th_wrong")).status for _ in range(3)]
        assert refused == [401, 401, 429]
        assert (await asked(house, KEYS, admin)).status == 200
        # They are counted together with those at the public port.
        assert (await (await house.ask(None, chat())).answer()).status == 429


async def test_what_a_key_did_is_in_the_audit_log(house: House) -> None:
    admin = await house.key(scopes=CHAT)
    answer = await asked(house, KEYS, admin, new_key(scopes=["chat"], metadata={"team": "web"}))
    made = json.loads(answer.body)
    async with AdminClient(house.settings.admin.socket) as client:
        event, *_ = (await client.list_audit(AuditQuery())).data
        assert (event.action, event.target, event.actor) == ("key.create", made["key_id"], id_of(admin))
        assert (event.request_id, event.address) == (answer.headers["x-request-id"], "127.0.0.1")
        assert event.changes["scopes"] == [None, ["chat"]]
        by_socket = (await client.list_audit(AuditQuery(target=id_of(admin)))).data[0]
        assert by_socket.actor.startswith("socket:")
        assert made["secret"].encode() not in msgspec.json.encode(event)


async def test_the_document_is_the_administrators_(house: House) -> None:
    assert (await asked(house, "/admin/v1/openapi.json")).status == 401
    answer = await asked(house, "/admin/v1/openapi.json", await house.key(scopes=["admin:read"]))
    assert json.loads(answer.body)["openapi"] == "3.1.0"


async def test_lists_come_in_parts(house: House) -> None:
    secrets = sorted([id_of(await house.key()) for _ in range(3)])
    admin = await house.key(scopes=["admin:read"])
    known = sorted([*secrets, id_of(admin)])
    seen: list[str] = []
    after = ""
    while True:
        part = json.loads((await asked(house, f"{KEYS}?limit=2{after}", admin)).body)
        seen += [key["key_id"] for key in part["data"]]
        if part["next"] is None:
            break
        after = f"&after={part['next']}"
    assert seen == known
    one = json.loads((await asked(house, f"{KEYS}?account=account-0", admin)).body)["data"]
    assert [key["account"] for key in one] == ["account-0"]
    usage = json.loads((await asked(house, f"/admin/v1/usage?limit=3&after={known[0]}", admin)).body)
    assert [row["key_id"] for row in usage["rows"]] == known[1:]


@pytest.mark.parametrize("list_", ["keys", "accounts", "usage", "audit", "log"])
async def test_a_part_that_is_the_whole_list_is_followed_by_none(house: House, list_: str) -> None:
    admin, key = await house.key(scopes=["admin:read"]), await house.key()
    for _ in range(2):
        assert (await (await house.ask(key)).answer()).status == 200
    for limit, follows in ((1, True), (1000, False)):
        part = json.loads((await asked(house, f"/admin/v1/{list_}?limit={limit}", admin)).body)
        assert (part["next"] is not None) is follows
    count = len(part["rows" if list_ == "usage" else "data"])
    whole = json.loads((await asked(house, f"/admin/v1/{list_}?limit={count}", admin)).body)
    assert whole == part


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "offset=3"])
async def test_a_query_that_means_nothing_is_refused(house: House, query: str) -> None:
    answer = await asked(house, f"{KEYS}?{query}", await house.key(scopes=["admin:read"]))
    assert answer.status == 400


async def test_a_name_with_anything_in_it_is_found(house: House) -> None:
    async with AdminClient(house.settings.admin.socket) as client:
        for name in ("a/b", "100 %", "äöü?#", "disable"):
            await client.create_account(NewAccount(name))
            assert (await client.show_account(name)).name == name
            assert (await client.disable_account(name)).disabled


@pytest.mark.parametrize(
    "id_", ["%00", "a%00b", "%0a", "%ff", "%ed%a0%80", "'", "%27%20OR%201=1--", "x" * 4000, "%252e", "."]
)
async def test_a9_an_id_of_anything_is_no_fault(house: House, id_: str) -> None:
    admin = await house.key(scopes=["admin"])
    for action in ACTIONS:
        if "{id}" in action.path:
            answer = await asked(house, action.url.replace("{id}", id_), admin, {}, method=action.method)
            assert answer.status == 404, action.name
    for query in ("keys?account=", "keys?after=", "usage?period=", "usage?account=", "audit?target=", "audit?actor="):
        answer = await asked(house, f"/admin/v1/{query}{id_}", admin)
        assert answer.status in {200, 400, 404}, query


async def test_two_changes_at_once_are_both_done(house: House) -> None:
    admin = await house.key(scopes=CHAT)
    secret = json.loads((await asked(house, KEYS, admin, new_key(scopes=["chat"]))).body)["secret"]
    path = f"{KEYS}/{id_of(secret)}"
    changes = ({"metadata": {"a": "1"}}, {"metadata": {"b": "2"}}, {"limits": {"concurrency": 3}})
    await asyncio.gather(*(asked(house, path, admin, change, method="PATCH") for change in changes))
    found = json.loads((await asked(house, path, admin)).body)
    assert (found["metadata"], found["limits"]) == ({"a": "1", "b": "2"}, {"concurrency": 3})
